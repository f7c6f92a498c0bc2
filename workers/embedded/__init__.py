"""Everything on one machine: Valkey, the local model and our own processes, supervised in one data directory."""
