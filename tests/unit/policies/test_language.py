"""A policy or site file is taken whole, or refused with file, line, column, what is wrong and how to mend it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
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


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as refused:
        policy_of(tmp_path, "services:\n  a: {hosts: [x], ports: [y]}\ngrants: [{for: g, to: s}]\n")
    assert [p.place.line for p in refused.value.problems] == [2, 2, 3, 3]


def test_a_missing_file_and_one_that_is_not_text_are_errors_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere\.yaml:1:1: cannot read .*nowhere\.yaml: No such file"):
        load_policy(tmp_path / "nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(PolicyError, match=r"b\.yaml:2:4: not UTF-8"):
        load_policy(tmp_path / "b.yaml")


def test_a_pipe_or_a_device_in_the_place_of_a_policy_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.yaml")
    for path in (tmp_path / "policy.yaml", Path("/dev/zero")):
        with pytest.raises(PolicyError, match="is not a file; give the path of a file"):
            load_policy(path)


def test_what_windows_editors_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_bytes(b"\xef\xbb\xbfmode: audit\r\ndefaults:\r\n  egress: deny\r\n")
    policy = load_policy(tmp_path / "policy.yaml")
    assert (policy.mode, policy.defaults.egress, policy.defaults.place.line) == (Mode.AUDIT, Verdict.DROP, 2)


# --- several files ---


def several(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "policy.yaml"


PARTS = {
    "policy": "include: [parts/services.yaml, parts/groups.yaml]\ngrants:\n  - {for: a, to: fs}\n",
    "parts__services": "services: {fs: {hosts: [10.0.0.1], ports: [tcp/1], protected: true, open-to: [n]}}\n"
    "include: [nets.yaml]\n",
    "parts__nets": "networks: {n: [192.0.2.0/24]}\nseal: [b]\n",
    "parts__groups": "include: [nets.yaml, ../mode.yaml]\ngroups: {a: 'User =?= \"a\"', b: 'User =?= \"b\"'}\n"
    "grants: [{for: b, to: fs}]\nseal: [a]\n",
    "mode": "mode: audit\ndefaults: {egress: deny}\n",
}


def test_included_files_are_read_first_in_order_and_once(tmp_path: Path) -> None:
    policy = load_policy(several(tmp_path, **PARTS))
    read = [Path(f).resolve().relative_to(tmp_path.resolve()).as_posix() for f in policy.files]
    assert read == ["parts/nets.yaml", "parts/services.yaml", "mode.yaml", "parts/groups.yaml", "policy.yaml"]
    assert [g.group for g in policy.grants] == ["b", "a"]
    assert [s.group for s in policy.seals] == ["b", "a"]
    assert (policy.mode, policy.defaults.egress) == (Mode.AUDIT, Verdict.DROP)


def test_every_place_names_the_file_it_is_in(tmp_path: Path) -> None:
    policy = load_policy(several(tmp_path, **PARTS))
    assert str(policy.services["fs"].place) == "parts/services.yaml:1"
    assert str(policy.groups["a"].place) == "parts/groups.yaml:2"
    assert [str(g.place) for g in policy.grants] == ["parts/groups.yaml:3", "policy.yaml:3"]
    assert (str(policy.mode_place), str(policy.defaults.place)) == ("mode.yaml:1", "mode.yaml:2")


def test_the_same_rules_in_one_file_mean_the_same(tmp_path: Path) -> None:
    together = load_policy(several(tmp_path, **PARTS))
    bodies = [re.sub(r"^include:.*\n", "", Path(f).read_text(), flags=re.MULTILINE) for f in together.files]
    sections: dict[str, str] = {}
    for body in bodies:
        for key, rest in re.findall(r"^([a-z]+):(.*(?:\n .*)*)", body, flags=re.MULTILINE):
            listed = "".join(f"\n  - {item}" for item in re.findall(r"\{.*?\}|(?<=\[)\w(?=\])", rest))
            sections[key] = (sections.get(key, "") + listed) if key in ("grants", "seal") else rest
    alone = policy_from_text("".join(f"{key}:{rest}\n" for key, rest in sections.items()))
    assert [(g.group, g.service) for g in alone.grants] == [(g.group, g.service) for g in together.grants]
    assert [s.group for s in alone.seals] == [s.group for s in together.seals]
    assert alone.services["fs"].open_to == together.services["fs"].open_to
    assert (alone.mode, alone.defaults.egress) == (together.mode, together.defaults.egress)


@pytest.mark.parametrize("changed", sorted(PARTS))
def test_the_digest_covers_every_file(tmp_path: Path, changed: str) -> None:
    before = load_policy(several(tmp_path, **PARTS)).digest
    assert load_policy(tmp_path / "policy.yaml").digest == before
    assert load_policy(several(tmp_path, **{changed: PARTS[changed] + "# another comment\n"})).digest != before


def test_a_directory_is_its_yaml_files_in_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "policy.d"
    several(folder, **{"20-rules": "seal: [b, a]\n", "10-groups": PARTS["parts__groups"].split("\n", 1)[1]})
    several(folder, **{"05-services": GOOD_SERVICE, "99-last": "include: [10-groups.yaml]\nmode: audit\n"})
    (folder / ".10-groups.yaml.swp").write_text("mode: [")
    (folder / "README").write_text("not read")
    policy = load_policy(folder)
    assert [Path(f).name for f in policy.files] == [
        "05-services.yaml",
        "10-groups.yaml",
        "20-rules.yaml",
        "99-last.yaml",
    ]
    assert [str(s.place) for s in policy.seals] == ["10-groups.yaml:3", "20-rules.yaml:1", "20-rules.yaml:1"]


def test_a_directory_with_a_misnamed_file_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"has no \*\.yaml file; put the policy there"):
        load_policy(tmp_path)
    (tmp_path / "a.yaml").write_text("mode: audit\n")
    assert load_policy(tmp_path).mode is Mode.AUDIT
    (tmp_path / "b.yml").write_text("mode: audit\n")
    with pytest.raises(PolicyError, match=r"b\.yml:1:1: files of a policy directory end in \.yaml; rename it"):
        load_policy(tmp_path)


def test_an_absolute_path_may_be_included(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "groups.yaml"
    other.parent.mkdir()
    other.write_text("mode: audit\n")
    policy = load_policy(several(tmp_path / "here", policy=f"include: [{other}]\nseal: []\n"))
    assert policy.mode is Mode.AUDIT
    assert str(policy.mode_place) == "../elsewhere/groups.yaml:1"


def test_a_text_without_a_file_includes_nothing() -> None:
    assert policy_from_text("mode: audit\n").mode is Mode.AUDIT
    with pytest.raises(PolicyError, match="a text without a file includes nothing"):
        policy_from_text("include: [a.yaml]\n")


def test_a_text_and_a_file_with_it_give_the_same_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(WHOLE)
    assert replace(load_policy(tmp_path / "policy.yaml"), files=("policy.yaml",)) == policy_from_text(WHOLE)


# --- whom to believe ---

OWNERS_WORD = "groups: {g: 'AcctGroup =?= \"physics\"'}\n"
RULES = {
    "grant": GOOD_SERVICE + "grants: [{for: g, to: fs}]\n",
    "audit": GOOD_SERVICE + "grants: [{for: g, to: fs, mode: audit}]\n",
    "class": "classes: [{name: a, dscp: ef}]\nclassify: [{for: g, class: a}]\n",
    "exposure": "networks: {n: [10.0.0.0/8]}\nexpose: [{for: g, ports: [tcp/1], to: [n]}]\n",
    "mark": "scitags: [{for: g, experiment: 2, activity: 3}]\n",
    "slice": "slices: [{for: g, name: '\"a\"', scope: site}]\n",
}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_what_opens_rests_on_the_owners_word_only_if_the_policy_says_so(rule: str) -> None:
    text = OWNERS_WORD + RULES[rule]
    with pytest.raises(PolicyError, match="rests on `AcctGroup`, which the job's owner can set"):
        policy_from_text(text)
    trusting = re.sub(r"\{for: g, ([^}]*)\}", r"{for: g, \1, trust-user: true}", text)
    declared = text + "attributes: {AcctGroup: {type: string, set-by: access-point}}\n"
    schedds = text.replace("AcctGroup", "User")
    for accepted in (trusting, declared, schedds):
        assert policy_from_text(accepted)


RESTRICTIONS = {
    "seal": "seal: [g]\n",
    "slice": "slices: [{for: g, name: '\"a\"'}]\n",
    "rate": "rates: [{for: g, rate: 5, unit: Mbit/s}]\n",
    "exposure": "expose: [{for: g, ports: [tcp/1], to: slice}]\n",
}


@pytest.mark.parametrize("rule", sorted(RESTRICTIONS))
def test_what_restricts_rests_on_typed_attributes_whoever_sets_them(rule: str) -> None:
    text = "groups: {g: 'Mine =?= 1'}\n" + RESTRICTIONS[rule]
    with pytest.raises(PolicyError, match="rests on `Mine`, not declared here"):
        policy_from_text(text)
    assert policy_from_text(text + "attributes: {Mine: {type: number}}\n")
    assert policy_from_text(text.replace("Mine", "AcctGroup"))


def test_the_slot_is_the_nodes_word() -> None:
    text = "groups: {g: 'TARGET.HasFastDisk'}\n"
    assert policy_from_text(text + RULES["grant"]).groups["g"].condition.references == {"target.hasfastdisk"}
    with pytest.raises(PolicyError, match="rests on `HasFastDisk`"):
        policy_from_text(text.replace("TARGET.", "") + RULES["grant"])


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
    ("mtu: 1500", "mtu: 12", "`network.mtu`: 12 is too small; write 1280 or more"),
    ("site: demo", "site: demo\ncolour: red", "unknown key `colour`"),
    (
        "[10.20.1.1,",
        "[10.20.1.65,",
        "site.yaml:11:91: host address 10.20.1.65 is among the addresses of the jobs of node `wn1`, 10.20.1.64/26; "
        "only jobs may have those: move the host's address, or that node's `ipv4` or `ipv6`",
    ),
    ("[10.20.1.1,", "[10.20.0.0/16,", "host address 10.20.0.0/16 is among the addresses of the jobs of node `wn1`"),
    ("2001:db8:20::1:1", "2001:db8:20:1::1", "is among the addresses of the jobs of node `wn1`, 2001:db8:20:1::/96"),
    (
        "nodes:\n",
        'nodes:\n  wn2: {bridge: wn2-br, ipv4: 10.20.2.64/26, host-addresses: ["2001:db8:20:1::a14:141"]}\n',
        "site.yaml:11:63: host address 2001:db8:20:1::a14:141 is among the addresses of the jobs of node `wn1`",
    ),
    (
        "infrastructure: [192.0.2.0/24]",
        "infrastructure: [192.0.2.0/24, 10.20.1.70]",
        "infrastructure 10.20.1.70 is among the addresses of the jobs of node `wn1`, 10.20.1.64/26; only jobs may have",
    ),
    (
        "infrastructure: [192.0.2.0/24]",
        'infrastructure: ["2001:db8:20:1::/97"]',
        "infrastructure 2001:db8:20:1::/97 is among the addresses of the jobs of node `wn1`",
    ),
    (
        "address: 192.0.2.21",
        "address: 10.20.1.70",
        "address 10.20.1.70 is among the addresses of the jobs of node `wn1`, 10.20.1.64/26; only jobs may have those: "
        "move the bridge's address",
    ),
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


def test_infrastructure_may_be_a_network_that_holds_the_jobs_addresses(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(SITE.replace("infrastructure: [192.0.2.0/24]", "infrastructure: [10.20.0.0/16]"))
    assert [str(net) for net in load_site(file).infrastructure] == ["10.20.0.0/16"]


def test_a_host_may_live_beside_its_jobs_addresses(tmp_path: Path) -> None:
    """In their network, and of a prefix longer than jobs use also within it: a job's address ends in its IPv4 one."""
    file = tmp_path / "site.yaml"
    wider = SITE.replace('"2001:db8:20:1::/96"', '"2001:db8:20:1::/64"')
    file.write_text(wider.replace("[10.20.1.1, ", '[10.20.1.63, 10.20.1.128, "2001:db8:20:1:ffff::1", '))
    assert len(load_site(file).nodes["wn1"].host_networks) == 4


def test_a_gate_cannot_guard_a_service_that_no_policy_protects(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, GOOD_SERVICE)
    with pytest.raises(PolicyError, match="gate `gate-br` guards `fileserver`, which no policy defines; defined: fs"):
        check_together(policy, demo_site())
