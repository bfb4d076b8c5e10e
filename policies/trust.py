"""Whom to believe: which job attributes the owner cannot choose (design: "Whom to believe"; HTCondor 23.9, 25.14).

Names are in lower case. An attribute that is in neither list below is whatever the owner says it is, unless the policy
file declares it `set-by: access-point`, which is the administrator's word that a JOB_TRANSFORM sets it and
IMMUTABLE_JOB_ATTRS lists it.
"""

from __future__ import annotations

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
