"""Networks from images to logits: capsule networks and the baselines they are compared with."""
