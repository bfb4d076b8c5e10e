"""Unit and property tests of Lark; `tests.worlds` builds small worlds for them."""
