"""The linear probe: how much of an image's class a linear classifier reads from frozen features."""
