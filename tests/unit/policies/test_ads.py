"""Job ads as condor_q prints them, and lists of attributes as condor_config_val does."""

from __future__ import annotations

import pytest

from policies.ads import BadAds, JobAd, names_in, read_ads, read_config_dump

LONG = """

-- Schedd: ap1.site : <192.0.2.7:9618?...> @ 11/22/26 10:00:00
ClusterId = 12
ProcId = 0
User = "alice@site"
LarkSlice = "a \\"b\\""
RequestMemory = ifthenelse(MemoryUsage =!= undefined,MemoryUsage,( ImageSize + 1023 ) / 1024)
Limits = { "a",2,true }
Rank = 0.0
Neg = -5
None = undefined

ClusterId = 13
ProcId = 1
User = "bob@site"
x509UserProxyVOName = "cms"
"""
JSON = """[
{"ClusterId": 12, "ProcId": 0, "User": "alice@site", "RequestMemory": "\\/Expr(ifthenelse(a,b,1))\\/", "L": ["a", 2]},
{"ClusterId": 13, "ProcId": 1, "Slash": "\\/Expr(5)\\/"}
]
[
{"ClusterId": 14, "ProcId": 0, "Nothing": null}
]
"""


def test_long_output_of_several_clusters() -> None:
    first, second = read_ads(LONG)
    assert first == JobAd(
        "12.0",
        {
            "ClusterId": 12,
            "ProcId": 0,
            "User": "alice@site",
            "LarkSlice": 'a "b"',
            "Limits": ["a", 2, True],
            "Rank": 0.0,
            "Neg": -5,
        },
        frozenset({"RequestMemory"}),
    )
    assert (second.label, second.ad["x509UserProxyVOName"]) == ("13.1", "cms")


def test_json_output_and_two_outputs_in_one_file() -> None:
    first, second, third = read_ads(JSON)
    assert first.ad == {"ClusterId": 12, "ProcId": 0, "User": "alice@site", "L": ["a", 2]}
    assert first.expressions == {"RequestMemory"}
    assert second.ad["Slash"] == 5
    assert third == JobAd("14.0", {"ClusterId": 14, "ProcId": 0})


def test_numbers_are_not_taken_for_the_states_that_the_library_numbers() -> None:
    (ad,) = read_ads("A = 1\nB = 2\nC = 4\nD = error\nE = undefined\nF = {1, 2}\n")
    assert ad == JobAd("?.?", {"A": 1, "B": 2, "C": 4, "F": [1, 2]}, frozenset({"D"}))


def test_only_what_is_wanted_is_kept_and_even_parsed() -> None:
    told = 'ClusterId = 1\nUSER = "a"\nOdd = )(\n'
    assert read_ads(told, ["user"]) == [JobAd("1.?", {"ClusterId": 1, "USER": "a"})]
    with pytest.raises(BadAds, match=r"line 3: Odd is not a ClassAd value: '\)\('"):
        read_ads(told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("<?xml version='1.0'?>", "looks like XML"),
        ("-- Schedd: a\n", "no job ads in it"),
        ("[]", "no job ads in it"),
        ("ClusterId = 1\nID OWNER SUBMITTED\n", "line 2 is not `Attribute = value`: 'ID OWNER SUBMITTED'"),
        ("[1, 2]", "a list of objects is expected"),
        ('[{"A": 1', "not the JSON that condor_q -json prints"),
    ],
)
def test_what_is_no_output_of_condor_q_is_told(text: str, said: str) -> None:
    with pytest.raises(BadAds) as caught:
        read_ads(text)
    assert said in str(caught.value)


def test_lists_of_attributes() -> None:
    assert names_in("LarkGroup, User LarkSlice\n") == {"LarkGroup", "User", "LarkSlice"}
    dump = """# Configuration from machine: wn1
startd_job_attrs = $(STARTD_JOB_ATTRS) $(OURS), User
OURS = LarkGroup,LarkSlice $(ALSO:) $(OURS)
IMMUTABLE_JOB_ATTRS =
"""
    assert read_config_dump(dump) == {
        "STARTD_JOB_ATTRS": {"User", "LarkGroup", "LarkSlice"},
        "IMMUTABLE_JOB_ATTRS": frozenset(),
    }
    assert read_config_dump("A = b\n") == {}
