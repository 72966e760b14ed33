"""The comparison in public: this bus, its peers and the raw floor, on the same machine in one run."""
