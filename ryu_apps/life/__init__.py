"""The life of attempts and nodes in the controller, a room for each concern; `ryu_apps.controller` is the door.

    requests ─┬▶ present   what is there now            hearing ─▶ (the same, for what other controllers wrote)
              ├▶ telling   what each bridge is told     reading_back, reloading: everything at once
              ├▶ records   what the store holds         nodes: nodes and their leases
              └▶ departures  what has ended             statuses: what is said about it all

Invariant: all rooms share the lock of `Present`. It is never held while waiting for a switch or for a row.
"""
