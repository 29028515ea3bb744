"""Networks that scores are computed with: Inception, ResNet-50, CLIP, a small classifier."""
