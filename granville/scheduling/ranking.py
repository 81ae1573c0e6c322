"""How urgent a request is, asked of a language model: the prompt, its labels, and what a model's scores mean.

A small model favours some labels whatever it is asked. So it is first asked about sample requests, as many of each
class, whose mean score for a label is then taken off (after Zhao et al., "Calibrate Before Use", ICML 2021, who ask
about texts without content; about real requests the bias is another, and taking that off gave better ranks). It is
measured for each model by itself; the words, the examples and their order were chosen with SmolLM2.
"""

from __future__ import annotations

from collections.abc import Sequence

from granville.scheduling.priority import Priority
from granville.scheduling.redact import excerpt
from granville.wire.messages import Request

LABELS = (" crisis", " deadline", " task", " someday")
"""In the order of Priority. Nouns of everyday speech were told apart better than the names of the classes, and than
adjectives: "urgent" fits what is critical as well."""

CRITICAL_MARGIN = 0.5
"""A request is critical when that score is within so much (of a logarithm) of the best one: a critical request that is
missed costs more than another that goes first. Chosen over five orders of the examples and two quantisations of
SmolLM2, where it raised the share of critical ones that are found from 84 to 94 % and cost 1 % of right ranks."""

MOST_BYTES = 120
"""Of a longer text its beginning and its end are read, half each. Beside much other text a small model overlooks the
words that matter: with more to read it found fewer critical requests, not more."""

_EXAMPLES: tuple[tuple[str, Priority], ...] = (
    ("Write an email to invite the team to a workshop.", Priority.NORMAL),
    ("The warehouse is on fire and people are trapped.", Priority.CRITICAL),
    ("Tell me a story about a wizard.", Priority.LOW),
    ("I must hand in my thesis today and Word will not open.", Priority.HIGH),
    ("My password expired and I can't start my work.", Priority.HIGH),
    ("Some time, clean up the old temporary files.", Priority.LOW),
    ("Hackers are copying our customer database at this moment.", Priority.CRITICAL),
    ("Explain how a hash table works.", Priority.NORMAL),
    ("Just wondering, who was the tallest king?", Priority.LOW),
    ("Translate this letter into Spanish.", Priority.NORMAL),
    ("We cannot ship today's parcels until this label is fixed.", Priority.HIGH),
    ("All servers crashed and orders are being lost.", Priority.CRITICAL),
    ("He is having a heart attack, help!", Priority.CRITICAL),
    ("I need the report for a meeting in one hour.", Priority.HIGH),
    ("Summarise the attached article.", Priority.NORMAL),
    ("batch: rename old photos when idle", Priority.LOW),
)

SAMPLES = (
    "There is a fire in the building.",
    "The heart monitor of a patient shows a flat line.",
    "Attackers have taken over the admin account.",
    "All our data is being erased.",
    "The bank transfer system is sending money to strangers.",
    "The server room is flooding.",
    "Customers are charged for orders that they never made.",
    "A worker fell from the roof and does not move.",
    "Production is down, every request fails.",
    "Someone stole the admin password and is reading our mail.",
    "My computer will not start and I must deliver this today.",
    "The team cannot work until the network is back.",
    "The application must be handed in before midnight.",
    "The guest arrives in an hour and the room is not booked.",
    "I am locked out and my shift begins now.",
    "The rent contract has to be sent today and the scanner is broken.",
    "The tests fail and the release is planned for tonight.",
    "I cannot open the file that my boss wants by noon.",
    "I have an exam tomorrow morning and my notes will not open.",
    "Our shop cannot take in deliveries until the scanner works.",
    "Write a letter to the landlord.",
    "What does this error code mean?",
    "Make a list of the topics in this text.",
    "Translate the menu into Italian.",
    "Review this pull request.",
    "Write a summary of chapter three.",
    "How do I read a CSV file in Python?",
    "Suggest a title for my blog post.",
    "Fix the spelling in this paragraph.",
    "Compare these two products.",
    "Tell me something funny.",
    "Tidy up the old backups whenever nothing else runs.",
    "Just for fun, write a song about cheese.",
    "I wonder how tall the tallest tree is.",
    "Some day, rename the files in my music folder.",
    "nightly job: compress the old log files",
    "Which superhero would you like to be?",
    "Background task: count the words in all archived pages.",
    "No hurry: pick a nice wallpaper for the break room.",
    "Invent a silly word.",
)
"""Ten of each class. Not among the examples: a model repeats the label that it has read for a text."""


def prompt(text: str) -> str:
    """What the labels are to follow. Its beginning never changes, so that a model reads it once; one token follows the
    text."""
    return f"{_BEGINNING}Request: {text} ->"


def text_to_rank(request: Request) -> str:
    """The last turn of a request in a line, without personal data, and cut where it is long."""
    text = request.text
    if text is None:
        users = [message.content for message in request.messages or () if message.role == "user"]
        text = users[-1] if users else ""
    half = MOST_BYTES // 2
    head, tail = _as_chars(text[:half], half), _as_chars(text[-half:], half)
    return " ".join(excerpt(text, head, tail).split())


def calibration(scores: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """What to take off each label's score: its mean over the samples."""
    return tuple(sum(column) / len(scores) for column in zip(*scores, strict=True))


def choose(scores: Sequence[float], offsets: Sequence[float]) -> Priority:
    """The class with the best score; critical already when it is nearly the best. Raises ValueError when there is not
    one number for each label."""
    calibrated = [score - offset for score, offset in zip(scores, offsets, strict=True)]
    calibrated[Priority.CRITICAL] += CRITICAL_MARGIN
    return max(Priority, key=lambda priority: calibrated[priority])


def _as_chars(text: str, most_bytes: int) -> int:
    """How many characters of a script like the text's take so many bytes, which is what tokens follow."""
    return most_bytes * len(text) // max(len(text.encode(errors="replace")), 1)


_BEGINNING = "".join(f"Request: {text} ->{LABELS[priority]}\n" for text, priority in _EXAMPLES)
