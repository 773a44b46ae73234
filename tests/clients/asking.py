"""What every client of the matrix is asked, and how a test sees that a slot is free again."""

from pydantic import BaseModel

from tests.running import RunningKvsup, eventually

MODEL = "smollm2"
EMBEDDER = "embedder"
ENDLESS = "endless"
"""Answers until its limit, whatever it is asked."""
ENDLESS_TOKENS = 1800
CALLER = "caller"
TWO_CALLS = "two-calls"
CITY_CALLER = "city"
FINAL_RESULT = "final-result"
CITY_JSON = "city-json"
"""They answer with ``PARIS``: a call of a tool ``City``, one of ``final_result``, plain JSON."""
THINKER = "thinker"
COPY = "thinker-copy"
"""Made and deleted by a test."""
FILL_IN = "fill-in"
SEEING = "seeing"
HEARING = "hearing"
ABSENT = "no-such-model"
DIMENSIONS = 576
"""Length of an embedding of the demo model."""

QUESTION = "Count from one to ten."


class City(BaseModel):
    """A city, as structured output."""

    name: str
    population: int


PARIS = City(name="Paris", population=2_100_000)
CITY_QUESTION = "Name a city and how many people live in it."

WEATHER_QUESTION = "What is the weather in Paris?"
CITY_ARGUMENTS = {"city": "Paris"}
"""With these ``CALLER`` calls ``get_weather``; ``TWO_CALLS`` then calls ``get_time`` too."""
ZONE_ARGUMENTS = {"zone": "CET"}
RESULT = "18 degrees, sunny"


def in_flight(kvsup: RunningKvsup, name: str = ENDLESS) -> int:
    """Return how many requests are at the llama-server of a model."""
    count: int = kvsup.models()[name]["in_flight"]
    return count


def assert_becomes_idle(kvsup: RunningKvsup, name: str = ENDLESS) -> None:
    """Fail unless the slots are free long before the answer would have ended by itself."""
    eventually(lambda: in_flight(kvsup, name) == 0, timeout_s=5)
