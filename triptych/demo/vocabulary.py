"""Words of the demo's shop: sound postcards, each with a place, an artwork and a loop.

Only data. A topic's words are what the text encoder has to read; styles and sounds are named for the report alone.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Topic:
    """What a postcard's text is about: words that fill the templates."""

    name: str
    things: tuple[str, ...]
    places: tuple[str, ...]
    moods: tuple[str, ...]
    doings: tuple[str, ...]


TOPICS: Final = (
    Topic(
        "sea",
        ("lighthouse", "sailboats", "seagulls", "tide pools", "coral reef", "fishing nets", "lobster pots", "whales"),
        ("harbour", "rocky coast", "sandy beach", "old pier", "quiet lagoon", "ferry deck"),
        ("salty", "windswept", "foaming", "turquoise", "tidal"),
        (
            "sailing past the breakwater",
            "collecting shells at low tide",
            "diving under the waves",
            "rowing out to the buoy",
        ),
    ),
    Topic(
        "forest",
        ("mossy oaks", "mushrooms", "deer", "ferns", "woodpecker", "pine cones", "badgers", "birch trees"),
        ("pine forest", "woodland clearing", "fern valley", "hidden grove", "beech wood", "forest trail"),
        ("mossy", "leafy", "shaded", "green", "rustling"),
        (
            "hiking under tall trees",
            "gathering acorns and mushrooms",
            "following deer tracks",
            "resting on a fallen log",
        ),
    ),
    Topic(
        "space",
        ("rocket", "astronauts", "Saturn's rings", "comet", "moon rover", "telescope", "galaxies", "satellite"),
        ("lunar base", "launch pad", "space station", "observatory", "Martian crater", "far orbit"),
        ("weightless", "starlit", "cosmic", "stellar", "lunar"),
        ("drifting between the stars", "counting the moons of Jupiter", "docking with the station", "mapping a nebula"),
    ),
    Topic(
        "city",
        ("trams", "skyscrapers", "neon signs", "taxi cabs", "subway", "traffic lights", "rooftops", "newspaper stand"),
        ("city centre", "busy avenue", "subway station", "rooftop terrace", "downtown crossing", "office tower"),
        ("bustling", "neon-lit", "rush-hour", "crowded", "metropolitan"),
        (
            "waiting for the last tram",
            "crossing the avenue at rush hour",
            "watching traffic from a rooftop",
            "hailing a cab",
        ),
    ),
    Topic(
        "kitchen",
        (
            "fresh bread",
            "copper pans",
            "cinnamon rolls",
            "tomato soup",
            "spice jars",
            "teapot",
            "pancakes",
            "olive oil",
        ),
        ("bakery", "farmhouse kitchen", "noodle bar", "coffee corner", "pastry shop", "dinner table"),
        ("buttery", "spicy", "home-baked", "sweet", "simmering"),
        (
            "kneading dough before sunrise",
            "tasting the soup once more",
            "baking biscuits with grandma",
            "setting the table for dinner",
        ),
    ),
    Topic(
        "winter",
        ("snowflakes", "reindeer", "icicles", "wool mittens", "sledges", "penguins", "frozen lake", "polar bear"),
        ("glacier", "ski slope", "snowy village", "frozen fjord", "arctic cabin", "ice rink"),
        ("snowy", "frosty", "wintry", "polar", "frozen"),
        (
            "skating over black ice",
            "building a snowman",
            "skiing down to the cabin",
            "warming hands after the blizzard",
        ),
    ),
    Topic(
        "desert",
        ("camels", "cactus", "sand dunes", "scorpion", "oasis", "clay pots", "lizards", "date palms"),
        ("red canyon", "desert camp", "caravan route", "dry riverbed", "oasis", "salt flat"),
        ("sun-baked", "dusty", "parched", "sandy", "scorching"),
        ("crossing the dunes by camel", "digging for water", "following the caravan", "sleeping in a tent on the sand"),
    ),
    Topic(
        "football",
        (
            "goalkeeper",
            "penalty kick",
            "referee",
            "floodlights",
            "winning goal",
            "team scarves",
            "trophy",
            "corner flag",
        ),
        ("stadium", "training pitch", "locker room", "penalty area", "grandstand", "league final"),
        ("roaring", "last-minute", "victorious", "championship", "sporting"),
        ("scoring in extra time", "cheering for the home team", "practising free kicks", "lifting the cup"),
    ),
)

STYLES: Final = ("rings", "stripes", "hills", "tiles", "confetti", "shards", "blooms", "stars")
SOUNDS: Final = ("bells", "drums", "drone", "flute", "surf", "arcade", "strings", "crickets")
CATEGORIES: Final = ("birthday", "bedtime", "travel", "thank-you", "focus", "morning", "party", "get-well")

OCCASIONS: Final = {
    "birthday": "A card for another year.",
    "bedtime": "A card to end the day with.",
    "travel": "A card for those on their way.",
    "thank-you": "A card that says thanks.",
    "focus": "A card for long afternoons.",
    "morning": "A card to begin the day with.",
    "party": "A card for a room full of friends.",
    "get-well": "A card for better days.",
}
TITLES: Final = (
    "{Mood} {thing}",
    "{Thing} of the {place}",
    "The {mood} {place}",
    "{Place} with {thing}",
    "{Thing} and {other}",
)
DESCRIPTIONS: Final = (
    "{Thing} and {other} at the {mood} {place}, and somebody {doing}.",
    "A {mood} {place}: {thing}, {other}, and an hour of {doing}.",
    "Postcard from the {place}. {Doing}, with {thing} never far away.",
    "{Doing}: {thing}, {other} and the {mood} {place}.",
)
REVIEWS: Final = (
    "I keep coming back for anything about the {place}: {thing}, {other}. {Doing} is my idea of a day well spent.",
    "My favourites are the {mood} ones with {thing}. Please make more about {other}!",
    "Bought one with {thing} and one of the {place}; both made me think of {doing}.",
)
