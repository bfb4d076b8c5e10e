"""Whom to believe: which job attributes the owner cannot choose (design: "Whom to believe"; HTCondor 23.9, 25.14).

Names are in lower case. An attribute that is in neither list below is whatever the owner says it is, unless the policy
file declares it `set-by: access-point`, which is the administrator's word that a JOB_TRANSFORM sets it and
IMMUTABLE_JOB_ATTRS lists it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from policies.model import Expression, Group
from policies.validation import Spot

SET_BY_SCHEDD = frozenset(
    {
        # immutable from submission on
        "owner",
        "user",
        "ntdomain",
        "clusterid",
        "procid",
        "qdate",
        # read by the schedd from the proxy or token that authenticated the submission
        "x509userproxyvoname",
        "x509userproxyfirstfqan",
        "x509userproxyfqan",
        "x509userproxysubject",
        "authtokensubject",
        "authtokenissuer",
        "authtokengroups",
        "authtokenscopes",
        "authtokenid",
    }
)
SET_BY_LARK_ACCESS_POINT = frozenset({"larkgroup"})
"""Set by the job transform of our access point configuration, which also makes it immutable."""

TYPED_BY_HTCONDOR = SET_BY_SCHEDD | frozenset(
    {
        "acctgroup",
        "acctgroupuser",
        "concurrencylimits",
        "dagmanjobid",
        "globaljobid",
        "jobuniverse",
        "requestcpus",
        "requestdisk",
        "requestgpus",
        "requestmemory",
    }
)
"""Attributes that HTCondor itself defines and types: a restriction may rest on them although the owner may set some."""


NUMBERS = frozenset(
    {
        "clusterid",
        "procid",
        "qdate",
        "dagmanjobid",
        "jobuniverse",
        "requestcpus",
        "requestdisk",
        "requestgpus",
        "requestmemory",
    }
)
"""Those of them that are numbers; the others are strings."""


class Beliefs:
    """What the rules of a policy may rest on. A group in error is not judged again."""

    def __init__(self, groups: Mapping[str, Group], declared: Iterable[tuple[str, str]], named: Iterable[str]) -> None:
        """`declared`: attributes and who sets them; `named`: also those whose declaration was not accepted."""
        self._groups = groups
        self._believed = SET_BY_SCHEDD | SET_BY_LARK_ACCESS_POINT
        self._believed |= {name.lower() for name, set_by in declared if set_by == "access-point"}
        self._group_names = {name.lower() for name in groups}
        self._known = self._believed | {name.lower() for name in named} | TYPED_BY_HTCONDOR

    def _read(self, group: str | None, also: Expression | None = None) -> dict[str, str]:
        """Job attributes that a rule rests on, and how they are spelt; those of the slot are the node's word."""
        condition = self._groups.get(group) if group is not None else None
        read: dict[str, str] = {}
        for expression in (condition.condition if condition is not None else None, also):
            for name in sorted(expression.references) if expression is not None else ():
                spelt = re.search(rf"\b{re.escape(name)}\b", expression.text, re.IGNORECASE) if expression else None
                if not name.startswith("target."):
                    read[name] = spelt.group() if spelt else name
        return read

    def opening(self, spot: Spot, what: str, group: str, trusting: bool) -> None:
        """A rule that gives its members something: it may not rest on what they say of themselves."""
        doubtful = _all_but(self._read(group), self._believed)
        if doubtful and not trusting and not self._takes_a_group(spot, what, group, self._read(group)):
            spot.add(
                f"this {what} rests on `{doubtful}`, which the job's owner can set to anything",
                "use an attribute that the schedd sets, or one that a JOB_TRANSFORM sets and IMMUTABLE_JOB_ATTRS lists"
                " (declare it with `set-by: access-point`), or say `trust-user: true`",
            )

    def restricting(self, spot: Spot, what: str, group: str | None, also: Expression | None = None) -> None:
        """A rule that its members may bring upon themselves, if only what they say has a known type."""
        loose = _all_but(self._read(group, also), self._known)
        if loose and not self._takes_a_group(spot, what, group, self._read(group, also)):
            spot.add(
                f"this {what} rests on `{loose}`, not declared here: a typing mistake would lift it",
                "declare it under `attributes:` with its type (or, if it is meant as text, write it in double quotes)",
            )

    def _takes_a_group(self, spot: Spot, what: str, own: str | None, read: Mapping[str, str]) -> bool:
        """Whether a condition names another group, which reads as an attribute; it is reported."""
        groups = [
            spelt
            for name, spelt in sorted(read.items())
            if name in self._group_names - self._known - {(own or "").lower()}
        ]
        if groups:
            spot.add(
                f"this {what} rests on a condition that reads group `{', '.join(groups)}` as if it were an attribute",
                "write the other group's condition out: conditions do not know each other",
            )
        return bool(groups)

    def sharing(self, spot: Spot, group: str | None, per: Expression | None, *, trusting: bool) -> None:
        """A restriction that its members may bring upon themselves. But who could choose `per` would have a share for
        each of his jobs."""
        self.restricting(spot, "restriction", group, per)
        doubtful = _all_but(self._read(None, per), self._believed)
        if doubtful and not trusting:
            spot.add(
                f"this share goes by `{doubtful}`, which the job's owner can set: each job could have one of its own",
                "use an attribute that the schedd sets, such as User, or one that a JOB_TRANSFORM sets and"
                " IMMUTABLE_JOB_ATTRS lists (declare it with `set-by: access-point`), or say `trust-user: true`",
            )

    def slice(self, spot: Spot, group: str, name: Expression, *, trusting: bool, site_wide: bool) -> None:
        read = self._read(group, name)
        doubtful, loose = _all_but(read, self._believed), _all_but(read, self._known)
        if site_wide and not trusting and doubtful:
            spot.add(
                f"this site-wide slice rests on `{doubtful}`, which the job's owner can set",
                "anybody could join it: use an attribute that the schedd or the access point sets, leave out"
                " `scope: site`, or say `trust-user: true`",
            )
        elif loose:
            spot.add(
                f"this slice rests on `{loose}`, not declared here",
                "declare it under `attributes:` with its type",
            )


def _all_but(read: Mapping[str, str], accepted: frozenset[str] | set[str]) -> str:
    """The attributes that are not accepted, as they are spelt."""
    return ", ".join(spelt for name, spelt in sorted(read.items()) if name not in accepted)
