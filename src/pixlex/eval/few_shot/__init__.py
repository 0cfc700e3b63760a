"""Few-shot classification: episodes, who answers them, and how answers are judged."""
