"""From an encoder to a classifier: linear probes, fine-tuning, LP-AFT."""
