"""A policy or site file is taken whole, or refused with file, line, column, what is wrong and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.language import PolicyError, attributes_read, check_together, load_policy, load_site, policy_from_text
from policies.model import Bandwidth, Mode, Reason, Verdict
from policies.wire import Phase
from tests.worlds import EXAMPLES, demo_site

GOOD_SERVICE = "services: {fs: {hosts: [10.0.0.1], ports: [tcp/1], protected: true}}\n"


def policy_of(tmp_path: Path, text: str) -> object:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    return load_policy(file)


def test_the_demo_policy_says_what_it_says() -> None:
    policy = load_policy(EXAMPLES / "demo.yaml")
    assert policy.mode is Mode.ENFORCE
    assert policy.services["fileserver"].protected
    assert policy.grants[0].during == frozenset(Phase)
    assert policy.defaults.egress is Verdict.ALLOW
    assert policy.defaults.between_jobs is Verdict.DROP
    assert attributes_read(policy) == {"larkgroup", "larknetwork", "larkslice", "user"}
    check_together(policy, demo_site())


def test_a_policy_that_says_little_is_closed_between_jobs_and_inward(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "mode: enforce\n")
    assert policy.defaults.ingress is Verdict.DROP
    assert policy.defaults.between_jobs is Verdict.DROP


WHOLE = """
mode: enforce
node-modes: [{nodes: ["wn-canary*", "!wn-canary9"], mode: audit}]
networks: {campus: [10.0.0.0/8, "2001:db8::/32"]}
services:
  fileserver: {hosts: [10.20.0.5], ports: [tcp/1094, udp/5000-5009, icmp], protected: true, mode: audit}
  xrootd: {ports: [tcp/1094-1095]}
attributes: {RequestNetworkMbps: {type: number, min: 0}, Serves: {type: boolean}}
groups:
  cms: 'x509UserProxyVOName =?= "cms"'
  serves: 'Serves'
grants: [{for: cms, to: fileserver, mode: audit}]
classes:
  - {name: production, dscp: af41, guarantee: 50%}
  - {name: osg, dscp: 8, guarantee: 10 Mbit/s, ceiling: 80%}
classify: [{for: cms, service: xrootd, class: production}, {service: fileserver, class: production}, {class: osg}]
slices: [{for: serves, name: '"mine"', between: exposed}]
rates: [{rate: RequestNetworkMbps, unit: Mbit/s, for: cms}, {rate: 1.5, unit: Gbit/s}]
expose: [{for: serves, ports: [tcp/8000-8999], to: slice}, {for: cms, ports: [icmp], to: [campus]}]
scitags: [{for: cms, experiment: cms, activity: production-input}, {for: cms, experiment: 9, activity: 1}]
defaults: {egress: audit, ingress: deny, between-jobs: allow}
"""


def test_every_key_gives_its_value() -> None:
    policy = policy_from_text(WHOLE)
    (node_mode,) = policy.node_modes
    assert (node_mode.nodes, node_mode.mode) == (("wn-canary*", "!wn-canary9"), Mode.AUDIT)
    assert policy.audits("wn-canary1")
    assert not policy.audits("wn-canary9")
    assert policy.services["fileserver"].audit
    assert not policy.services["xrootd"].audit
    assert [str(p) for p in policy.services["fileserver"].ports] == ["tcp/1094", "udp/5000-5009", "icmp"]
    assert policy.grants[0].audit
    assert [(c.name, c.dscp, c.guarantee, c.ceiling) for c in policy.classes] == [
        ("production", 34, Bandwidth(percent=50), None),
        ("osg", 8, Bandwidth(bits=10_000_000), Bandwidth(percent=80)),
    ]
    assert [(r.group, r.service, r.traffic_class) for r in policy.classify] == [
        ("cms", "xrootd", "production"),
        (None, "fileserver", "production"),
        (None, None, "osg"),
    ]
    assert policy.slices[0].exposed_only
    assert [(r.group, r.expression.text, r.unit) for r in policy.rates] == [
        ("cms", "RequestNetworkMbps", 10**6),
        (None, "1.5", 10**9),
    ]
    assert [(e.to_slice, [str(n) for n in e.networks]) for e in policy.exposes] == [
        (True, []),
        (False, ["10.0.0.0/8", "2001:db8::/32"]),
    ]
    assert [(t.experiment, t.activity) for t in policy.scitags] == [(3, 11), (9, 1)]
    assert policy.defaults.egress is Verdict.DROP
    assert policy.defaults.audited == {Reason.EGRESS}
    assert policy.defaults.between_jobs is Verdict.ALLOW
    assert policy.exposes[1].place.line == 19


BAD_POLICIES = [
    ("", "policy.yaml:1:1: the policy is empty; write at least `defaults: {…}`"),
    ("# nothing but a comment\n", "policy.yaml:1:1: the policy is empty; write at least `defaults: {…}`"),
    ("mode: loud\n", "policy.yaml:1:1: `mode`: 'loud' is not known; one of 'enforce' or 'audit'"),
    (
        "modes: audit\n",
        "policy.yaml:1:1: unknown key `modes`; known here: mode, networks, services, attributes, groups, grants,"
        " classes, classify, slices, rates, expose, scitags, node-modes, seal, defaults",
    ),
    ("mode: audit\nmode: audit\n", "policy.yaml:2:1: key `mode` is given twice; keep one of them"),
    ("- a\n", "policy.yaml:1:1: a mapping of sections is expected; start with `services:` or the like"),
    ("services: [\n", "policy.yaml:2:1: not YAML: "),
    ("a: &x 1\nb: *x\n", "policy.yaml:1:4: YAML anchors and aliases are not used here (`x`); write it out"),
    (
        "services:\n  fs: {hosts: [10.0.0.256], ports: [tcp/1]}\n",
        "policy.yaml:2:16: '10.0.0.256' is not an IP address; write a host's address, such as 10.20.0.5 or 2001:db8::5",
    ),
    (
        "services:\n  fs: {hosts: [10.0.0.1], ports: [tcp/9-5]}\n",
        "policy.yaml:2:35: port range 'tcp/9-5' is reversed; write tcp/5-9",
    ),
    (
        "services:\n  fs: {hosts: [10.0.0.1], ports: [1094]}\n",
        "policy.yaml:2:35: `services.fs.ports.0`: text is expected, not 1094; put it in quotes",
    ),
    (
        "services:\n  fs: {hosts: [10.0.0.1], ports: [sctp/5]}\n",
        "policy.yaml:2:35: 'sctp/5' is not a port or range of ports; write tcp/1094, udp/53, tcp/27000-27009 or icmp",
    ),
    (
        "services:\n  fs: {hosts: [10.0.0.1], ports: [tcp/70000]}\n",
        "policy.yaml:2:35: 'tcp/70000': ports go from 1 to 65535",
    ),
    (
        "services:\n  fs: {ports: [tcp/5], protected: true}\n",
        "policy.yaml:2:3: service `fs` is protected but names no hosts; add `hosts: […]`",
    ),
    (
        "services:\n  fs: {hosts: [10.0.0.1], ports: [tcp/5], protected: true, port: 1}\n",
        "policy.yaml:2:60: unknown key `port`; known here: hosts, ports, protected, open-to, mode",
    ),
    (
        "services:\n  fs: {hosts: [10.0.0.1], ports: [tcp/5], protected: true, open-to: [staff]}\n",
        "policy.yaml:2:70: network `staff` is not defined; define it first",
    ),
    (
        "networks: {staff: [10.9.0.1/16]}\n",
        "policy.yaml:1:20: '10.9.0.1/16' has bits set beyond its prefix; write 10.9.0.0/16",
    ),
    (
        GOOD_SERVICE + "groups: {g: 'User =?='}\n",
        "policy.yaml:2:10: group `g`: not a ClassAd expression: 'User =?='; write a ClassAd expression in quotes",
    ),
    (
        GOOD_SERVICE + "groups: {g: 'random(2) == 1'}\n",
        "policy.yaml:2:10: group `g`: random() changes from one evaluation to the next",
    ),
    (
        GOOD_SERVICE + "groups: {g: 'User =?= \"a\"'}\ngrants:\n  - {for: h, to: fs}\n",
        "policy.yaml:4:6: group `h` is not defined; defined: g",
    ),
    (
        GOOD_SERVICE + "groups: {g: 'User =?= \"a\"'}\ngrants:\n  - {for: g, to: fileserver}\n",
        "policy.yaml:4:14: service `fileserver` is not defined; defined: fs",
    ),
    (
        GOOD_SERVICE + "groups: {g: 'User =?= \"a\"'}\ngrants:\n  - {for: g, to: fs, during: [running]}\n",
        "policy.yaml:4:31: `grants.0.during.0`: 'running' is not known; one of 'stage-in', 'run' or 'stage-out'",
    ),
    (
        GOOD_SERVICE + "groups: {g: 'AcctGroup =?= \"physics\"'}\ngrants:\n  - {for: g, to: fs}\n",
        "policy.yaml:4:5: this grant rests on `acctgroup`, which the job's owner can set to anything; use an attribute"
        " that the schedd sets, or one that a JOB_TRANSFORM sets and IMMUTABLE_JOB_ATTRS lists (declare it with"
        " `set-by: access-point`), or say `trust-user: true`",
    ),
    (
        "groups: {s: 'LarkNetwork =?= \"none\"'}\nseal: [s]\n",
        "policy.yaml:2:8: this restriction rests on `larknetwork`, not declared here: a typing mistake would lift it;"
        " declare it under `attributes:` with its type",
    ),
    (
        "groups: {s: 'LarkSlice =!= undefined'}\nslices: [{for: s, name: LarkSlice}]\n",
        "policy.yaml:2:10: this slice rests on `larkslice`, not declared here; declare it under `attributes:` with its"
        " type",
    ),
    (
        "attributes: {LarkSlice: {type: string}}\ngroups: {s: 'LarkSlice =!= undefined'}\n"
        "slices: [{for: s, name: LarkSlice, scope: site}]\n",
        "policy.yaml:3:10: this site-wide slice rests on `larkslice`, which the job's owner can set; anybody could join"
        " it: use an attribute that the schedd or the access point sets, leave out `scope: site`, or say"
        " `trust-user: true`",
    ),
    (
        "groups: {s: 'User =?= \"a\"'}\nslices: [{for: t, name: User}, {for: s, name: 'User ='}]\n",
        "policy.yaml:2:11: group `t` is not defined; defined: s",
    ),
    (
        "groups: {s: 'User =?= \"a\"'}\nslices: [{for: s, name: 'User ='}]\n",
        "policy.yaml:2:19: name of a slice: not a ClassAd expression: 'User ='",
    ),
    (
        "attributes: {LarkSlice: {type: string, max-length: 0}}\n",
        "policy.yaml:1:40: `attributes.LarkSlice.max-length`: input should be greater than or equal to 1 (got 0)",
    ),
    (
        "attributes: {N: {type: enum, values: [a, b], default: c}}\n",
        "policy.yaml:1:46: `N`: the default must be one of 'a', 'b', not 'c'; give a default that fits",
    ),
    (
        "attributes: {N: {type: number, min: 5, max: 1}}\n",
        "policy.yaml:1:14: `N`: min 5 is greater than max 1; swap them",
    ),
    (
        "attributes: {N: {type: number}, n: {type: number}}\n",
        "policy.yaml:1:33: attribute `n` is declared twice (names ignore case); keep one",
    ),
    (
        "services:\n  a: {hosts: [10.0.0.1], ports: [tcp/1-9], protected: true}\n"
        "  b: {hosts: [10.0.0.1], ports: [tcp/5], protected: true}\n",
        "policy.yaml:3:3: `b` and `a` both protect 10.0.0.1 tcp/5; let one service hold what they share",
    ),
    (
        "services:\n  a: {hosts: [10.0.0.1], ports: [tcp/1]}\ngroups: {g: 'User =?= \"a\"'}\n"
        "grants: [{for: g, to: a}]\n",
        "policy.yaml:4:19: service `a` is not protected: every job reaches it, a grant gives nothing",
    ),
    (
        "defaults: {egress: yes}\n",
        "policy.yaml:1:12: `defaults.egress`: 'yes' is not known; one of 'allow', 'deny' or 'audit'",
    ),
    ("a: " + "[" * 40 + "]" * 40 + "\n", "policy.yaml:1:20: nested deeper than 16 levels; flatten it"),
    ("#" + "x" * 1024 * 1024, "policy.yaml:1:1: larger than 1048576 bytes; split it or name networks once"),
]


@pytest.mark.parametrize(("text", "message"), BAD_POLICIES, ids=[m[:70] for _, m in BAD_POLICIES])
def test_a_bad_policy_is_refused_with_place_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy_of(tmp_path, text)
    assert any(str(p).startswith(message) for p in refused.value.problems), str(refused.value)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as refused:
        policy_of(tmp_path, "services:\n  a: {hosts: [x], ports: [y]}\ngrants: [{for: g, to: s}]\n")
    assert [p.place.line for p in refused.value.problems] == [2, 2, 3, 3]


def test_a_missing_file_and_one_that_is_not_text_are_errors_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read .*nowhere\.yaml"):
        load_policy(tmp_path / "nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(PolicyError, match=r"b\.yaml:2:1: not UTF-8"):
        load_policy(tmp_path / "b.yaml")


def test_an_attribute_that_the_access_point_sets_may_carry_a_grant(tmp_path: Path) -> None:
    text = GOOD_SERVICE + (
        "attributes: {AcctGroup: {type: string, set-by: access-point}}\n"
        "groups: {g: 'AcctGroup =?= \"physics\"'}\ngrants: [{for: g, to: fs}]\n"
    )
    assert policy_of(tmp_path, text).grants
    trusting = GOOD_SERVICE + "groups: {g: 'Mine =?= 1'}\ngrants: [{for: g, to: fs, trust-user: true}]\n"
    assert policy_of(tmp_path, trusting).grants


SITE = (EXAMPLES / "demo-site.yaml").read_text()
BAD_SITES = [
    ("bridge: wn1-br", "bridge: nowhere", "bridge `nowhere` is not declared; defined: gate-br, wn1-br"),
    ("ipv4: 10.20.1.64/26", "ipv4: 10.30.1.64/26", "10.30.1.64/26 is not in the job network 10.20.0.0/16"),
    ("ipv4: 10.20.1.64/26", "ipv4: 10.20.0.0/26", "the range 10.20.0.0/26 holds the gateway 10.20.0.1"),
    ('"2001:db8:20:1::/96"', '"2001:db8:20:1::/48"', "has bits set beyond its prefix"),
    ('"2001:db8:20:1::/96"', '"2001:db8:20:1::/112"', "a node's IPv6 prefix is /64 to /96"),
    ("192.0.2.21", "192.0.2.256", "'192.0.2.256' is not an IP address; write a host's address"),
    ("192.0.2.21", "0.0.0.0", "0.0.0.0 is nobody's address; give the management address"),
    ("00b1", "00a1", "bridges `wn1-br` and `gate-br` have the same datapath id"),
    ("{uplink: [up0]}", "{}", "a worker bridge has exactly one uplink; ports: {uplink: [NAME]}"),
    ("roles: [worker]", "roles: [worker, gate]", "one bridge cannot be worker and gate yet"),
    ("server-facing: [sf0], ", "", "a gate needs a server-facing port"),
    ("roles: [gate]", "roles: [border]", "only a gate guards services"),
    ("gateway-ipv4: 10.20.0.1", "gateway-ipv4: 10.21.0.1", "gateway 10.21.0.1 is not in 10.20.0.0/16"),
    ("mtu: 1500", "mtu: 12", "`network.mtu`: input should be greater than or equal to 1280 (got 12)"),
    ("site: demo", "site: demo\ncolour: red", "unknown key `colour`"),
    (
        "address: 192.0.2.21",
        'certificate: "urn:lark:bridge:other"',
        "Lark's own certificates have their names without being told; drop `certificate`",
    ),
    ("{bridge: wn1-br,", '{bridge: wn1-br, certificate: "",', "`nodes.wn1.certificate`"),
    (
        "  wn1: {bridge: wn1-br,",
        "  wn0: {bridge: wn1-br, ipv4: 10.20.2.64/26, certificate: H.example.org}\n"
        "  wn1: {certificate: h.example.org, bridge: wn1-br,",
        "node `wn0` has this certificate too; an agent's certificate is for one node",
    ),
]


def test_names_in_certificates_of_another_ca_are_declared(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    text = SITE.replace("{bridge: wn1-br,", "{bridge: wn1-br, certificate: spiffe://site/wn1,")
    file.write_text(text.replace("address: 192.0.2.21", "certificate: gate.example.org"))
    site = load_site(file)
    assert site.nodes["wn1"].certificate == "spiffe://site/wn1"
    assert (site.bridges["gate-br"].certificate, site.bridges["wn1-br"].certificate) == ("gate.example.org", None)


@pytest.mark.parametrize(("old", "new", "message"), BAD_SITES, ids=[m for *_, m in BAD_SITES])
def test_a_bad_site_is_refused_with_place_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SITE
    file = tmp_path / "site.yaml"
    file.write_text(SITE.replace(old, new))
    with pytest.raises(PolicyError) as refused:
        load_site(file)
    assert message in str(refused.value)
    assert all(p.place.file == "site.yaml" for p in refused.value.problems)


def test_a_gate_cannot_guard_a_service_that_no_policy_protects(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, GOOD_SERVICE)
    with pytest.raises(PolicyError, match="gate `gate-br` guards `fileserver`, which no policy defines; defined: fs"):
        check_together(policy, demo_site())
