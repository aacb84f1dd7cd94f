"""Who earned what: integer weights from recorded evidence, recomputable by any peer. Pure."""
