"""One process of a deployment: its plan, and the runner that starts and stops all of its parts."""
