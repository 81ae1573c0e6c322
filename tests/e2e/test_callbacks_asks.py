"""The HTTP callbacks of test_callbacks once more, carried by asks."""

from __future__ import annotations

from tests.e2e.test_callbacks import (
    posts,
    test_a_redirect_is_not_followed,
    test_an_error_goes_to_the_callback_in_the_results_place,
    test_http,
    test_http_is_tried_again_while_it_is_busy,
    test_http_takes_deltas_in_order,
    test_http_that_refuses_is_not_tried_again,
)

FLAGS = ("--tcp", "127.0.0.1:0", "--delivery-ttl", "3", "--slots", "4", "--callback-transport", "asks")

__all__ = [
    "posts",
    "test_a_redirect_is_not_followed",
    "test_an_error_goes_to_the_callback_in_the_results_place",
    "test_http",
    "test_http_is_tried_again_while_it_is_busy",
    "test_http_takes_deltas_in_order",
    "test_http_that_refuses_is_not_tried_again",
]
