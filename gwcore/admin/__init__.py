"""The operator's HTTP interface, served by the supervisor."""
