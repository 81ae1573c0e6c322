"""What the drivers for sound share: jobs that take turns, options, text cut into pieces. None of their backends."""
