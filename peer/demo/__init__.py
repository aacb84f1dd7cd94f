"""The demo: real text, real contributors, small trained adapters, and a whole network on one machine."""
