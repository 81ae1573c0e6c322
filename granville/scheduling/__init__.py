"""What runs next: pure and synchronous. Time is passed in as `now`, seconds of one monotonic clock."""
