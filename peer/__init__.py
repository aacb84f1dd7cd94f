"""The shell: daemon, router, store, witness, gateway, command line and configuration."""
