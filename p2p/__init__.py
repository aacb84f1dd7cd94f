"""How peers talk: the transport seam, libp2p behind one module, and sans-I/O protocols."""
