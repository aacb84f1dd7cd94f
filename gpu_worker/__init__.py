"""One process, one device: the engine, its adapters and its scheduler. The only place that loads torch."""
