"""Faults under load: controller, switches, disk and connections fail while jobs come, go and talk; all is counted."""
