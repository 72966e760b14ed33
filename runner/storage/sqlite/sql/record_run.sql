-- Record many deliveries that succeeded at once: the first and the last seq, all seqs as stretches, the subscriptions.
INSERT INTO runs (first, last, seqs, subscriptions, settled_at) VALUES (?, ?, ?, ?, ?)
