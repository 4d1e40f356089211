"""What a writer says of a picture is taken if and only if the annotations say it, too."""
import random

import pytest

from support.building.claims import check_description, check_turn, place_of
from support.building.passages import Facts, Truth, Wrong

FACTS = Facts("a.png", (200, 100), (
    ("ship", (10, 5, 40, 20)), ("ship", (120, 5, 140, 15)), ("ship", (160, 80, 198, 99)),
    ("Harbor", (40, 40, 120, 60)), ("storage-tank", (4, 84, 20, 96)),
    ("storage-tank", (24, 84, 40, 96))), "port", ("two white cars are parked by the water",),
    ("ship", "harbor", "bridge", "airplane", "storage-tank"))
TRUTH = Truth(FACTS)
S1, S2, S3, H, T1, T2 = (thing.text for thing in TRUTH.things)
SHIP = f"<p>a ship</p> {S1}"
HARBOR = f"<p>the harbor</p> {H}"


def fault(text):
    """The kind of what is wrong with a description, or ""."""
    try:
        check_description(TRUTH, text)
    except Wrong as error:
        assert "\n" not in str(error)
        return str(error).split(":")[0]
    return ""


def turn_fault(question, answer):
    try:
        check_turn(TRUTH, question, answer)
    except Wrong as error:
        return str(error).split(":")[0]
    return ""


TRUE = (
    "A port with three ships, one harbor and 2 storage tanks under a gray sky.",
    f"{SHIP} lies in the upper left, and {HARBOR} is in the center.",
    f"In the upper left, {SHIP} floats near {HARBOR}.",
    f"<p>Two storage tanks</p> {T1}<delim>{T2} stand in the lower left.",
    f"<p>All three ships</p> {S1}<delim>{S2}<delim>{S3} are white.",
    f"<p>Two ships</p> {S1}<delim>{S2} are at the top. Both are small.",
    f"The largest is <p>the ship</p> {S3}.", f"<p>The leftmost ship</p> {S1} is gray.",
    f"{SHIP} is to the left of {HARBOR} and above it.", f"{SHIP} is above {HARBOR}.",
    f"{SHIP} lies on the left side of the picture.",
    f"{SHIP} lies at the upper edge of the picture.", f"{SHIP} waits at {HARBOR}.",
    "A trio of ships.", "Three ships lie at the edge of the water.",
    "There are no bridges or airplanes.", "A bridge is not visible.",
    "Several ships and many trees.", "There are more ships than harbors.",
    "Ships outnumber storage tanks.", "There are 6 objects.", "Two white cars stand by the water.",
    "One of the ships is long, and the larger one is gray.", "No other ships are seen.",
    "The pier meets the shore at right angles near the city center.",
    "The largest part of the land is paved.", "A pair of storage tanks.")
FALSE = {
    "wrong count": (
        "There are four ships.", "There are 2 ships.", "A ship.\nThere are five large white ships.",
        "Twenty-three ships.", "A single ship.", "Many ships.", "Dozens of ships.", "Two of the "
        "ships are gray.", "Two more ships.", "There are about 30 trees.", "A three-lane road.",
        "There are more harbors than ships.", "There are fewer ships than harbors.", "The harbors.",
        f"<p>Three ships</p> {S1}<delim>{S2} are white.", f"<p>ships</p> {S1} are white.",
        f"<p>The ship</p> {S1}<delim>{S2} is white.", f"<p>all ships</p> {S1}<delim>{S2} are here.",
        f"<p>One ship</p> {S1} is at the top.", f"There are <p>two ships</p> {S1}<delim>{S2}.",
        f"Three <p>ships</p> {S1}<delim>{S2}.", "There are 7 objects.", "Hundreds of ships.",
        "The ships are 40 meters long.", "Ten white cars stand by the water.",
        "There are more than three ships.", "Over 3 ships.", "Half a dozen ships.", "A trio of "
        "harbors.", "The only ship.", f"<p>the only ship</p> {S1}", "A hundred ships.",
        f"<p>nearly two ships</p> {S1}<delim>{S2}", "Plenty of storage tanks."),
    "wrong class": (
        "An airplane is parked.", "A bridge crosses the water with no cars.", "A plane flies.",
        "There are no cars on the bridge.", "There are no ships.", "No large ships or bridges.",
        "Ships are absent.", "There are hardly any ships.", "The ships are not visible.",
        "There is no tennis court.", "A tennis court.",
        f"<p>a harbor</p> {S1}.", f"<p>the water</p> {S1}.",
        f"<p>a ship in the harbor</p> {S1}.", f"<p>no ship</p> {S1}."),
    "wrong box": (
        "<p>a ship</p> {<5><5><20>}", "<p>a ship</p> {<5><5><20><101>}", f"A ship {S1}.",
        "<p>a ship</p> {<20><5><5><20>}", "<p>a ship</p> {<6><5><20><20>}", "a {ship}", "a [ship]",
        f"<p>two ships</p> {S1}<delim>{S1}", f"<p>a ship</p> {S1}<delim>", "<Img></Img>", "<bbox>"),
    "wrong place": (
        f"{SHIP} is in the lower left.", f"{SHIP} lies on the right.", f"{SHIP} is in the middle.",
        f"<p>Two ships</p> {S1}<delim>{S3} are at the top.", "A ship in the upper left.",
        f"{SHIP} is to the right of {HARBOR}.", f"{SHIP} is below {HARBOR}.",
        f"<p>a ship</p> {S3} is near <p>a storage tank</p> {T1}.", f"{SHIP} is left of the road.",
        f"<p>The largest ship</p> {S1}.", f"The largest ship is <p>the ship</p> {S2}.",
        f"<p>the lower ship</p> {S1}", "The northern shore.", f"{SHIP} points east.",
        f"{SHIP} in the lower right and {HARBOR} in the center.", "The river runs on the left.",
        f"{SHIP} lies in <p>the ship</p> {S3}.", f"{SHIP} lies between {HARBOR} and the road.",
        f"{SHIP} lies at the edge of the picture.", f"{SHIP} is the closest."),
    "wrong form": ("", " ", "a ship @0@", "a ship\x1f", "三艘船", "½ of the water", "\ud800")}


@pytest.mark.parametrize("text", TRUE)
def test_a_true_description_is_taken(text):
    assert fault(text) == ""


@pytest.mark.parametrize("kind, text", [(kind, text) for kind in FALSE for text in FALSE[kind]])
def test_a_false_description_is_refused_with_its_kind(kind, text):
    assert fault(text) == kind


TURNS = (
    ("How many ships are there?", "Three.", ""),
    ("How many ships are there?", "There are 3 ships.", ""),
    ("How many ships are there?", "4", "wrong count"),
    ("How many ships are there?", "One.", "wrong count"),
    ("How many ships are there?", "Enough to fill it.", "wrong count"),
    ("What is the number of ships?", "Two", "wrong count"),
    ("How many bridges are there?", "None.", ""),
    ("How many ships are there?", "None.", "wrong class"),
    ("How many ships are at the top?", f"<p>Two ships</p> {S1}<delim>{S2}.", ""),
    ("How many ships are at the top?", f"<p>One ship</p> {S1}.", "wrong count"),
    ("How many ships are at the top?", "Two.", "wrong place"),
    ("How many ships are in the lower left?", "None.", ""),
    ("How many ships are in the upper left?", "None.", "wrong count"),
    ("How many ships are docked?", f"<p>Two ships</p> {S1}<delim>{S2}.", "wrong count"),
    ("Is there a bridge?", "No, there is no bridge.", ""),
    ("Is there a bridge?", "Yes, there is.", "wrong class"),
    ("Is there a tennis court?", "No.", "wrong class"),
    ("Is there a ship?", "Yes, in the water.", ""),
    ("Is there a ship?", "No.", "wrong class"),
    ("Is the ship moving?", "No, it is not.", "wrong class"),
    ("What do the bridges cross?", "A river.", "wrong class"),
    ("Are there more ships than harbors?", "Yes, three ships and one harbor.", ""),
    ("Are there more ships than harbors?", "No.", "wrong count"),
    ("Are there fewer ships than harbors?", "No, there are more ships than harbors.", ""),
    ("Which ship is the largest?", f"<p>The ship</p> {S3}.", ""),
    ("Which ship is the largest?", f"<p>The ship</p> {S1}.", "wrong place"),
    ("Where is the largest ship?", f"<p>The harbor</p> {H}.", "wrong class"),
    (f"What is in {S1}?", f"<p>A ship</p> {S1}, in the upper left.", ""),
    (f"Where is <p>the harbor</p> {H}?", "It is in the center.", ""),
    (f"Where is <p>the harbor</p> {H}?", "It is in the upper left.", "wrong place"),
    ("What is in the upper left?", f"<p>A ship</p> {S1}.", ""),
    ("What is in the lower right?", f"<p>A ship</p> {S1}.", "wrong place"),
    (f"What is to the left of {HARBOR}?", f"<p>A ship</p> {S1}.", ""),
    (f"What is to the left of {HARBOR}?", f"<p>A ship</p> {S2}.", "wrong place"),
    ("What is in {<1><2><3><4>}?", "Water.", "wrong box"),
    ("Why do the ships stay here?", "The harbor shelters them while they load.", ""),
    ("Are there four ships?", "Yes.", "wrong count"))


@pytest.mark.parametrize("question, answer, kind", TURNS)
def test_a_turn_is_taken_where_question_and_answer_are_true(question, answer, kind):
    assert turn_fault(question, answer) == kind


def random_facts(rng):
    names = rng.sample(["ship", "bus", "factory", "storage tank", "boeing 737"], 4)
    width, height = rng.randint(50, 900), rng.randint(50, 900)
    objects = []
    for name in names[:3]:
        for _ in range(rng.randint(1, 7)):
            x, y = rng.uniform(0, width * 0.9), rng.uniform(0, height * 0.9)
            objects.append((name, (x, y, x + width * 0.08, y + height * 0.08)))
    return Facts("a.png", (width, height), tuple(objects), classes=tuple(names))


def test_on_random_layouts_true_statements_are_taken_and_their_opposites_are_not():
    rng = random.Random(5)
    opposite = {"upper": "lower", "lower": "upper", "left": "right", "right": "left"}
    plural = {"ship": "ships", "bus": "buses", "factory": "factories",
              "storage tank": "storage tanks", "boeing 737": "boeing 737s"}
    kinds = []
    for _ in range(60):
        facts = random_facts(rng)
        truth = Truth(facts)
        taken, refused = [], [f"There is a {facts.classes[3]}.", f"A {facts.classes[3]} is near."]
        taken.append(f"There is no {facts.classes[3]}.")
        for name, total in truth.count.items():
            noun = name if total == 1 else plural[name]
            taken.append(f"There are {total} {noun}.")
            refused += [f"There are {total + 1} {plural[name]}.", f"{total + 2} white {noun}.",
                        f"There is no {name}.", f"There are not any {plural[name]}."]
        for thing in truth.things:
            place = place_of(thing.x, thing.y)
            here = f"<p>a {thing.name}</p> {thing.text}"
            taken += [f"{here} in the {place} of the picture.", f"{here}."]
            for word in set(place.split()) & set(opposite):
                refused.append(f"{here} in the {place.replace(word, opposite[word])}.")
            other = next(name for name in truth.count if name != thing.name)
            refused.append(f"<p>the {other}</p> {thing.text}")
        for text in taken:
            check_description(truth, text)
        for text in refused:
            with pytest.raises(Wrong) as error:
                check_description(truth, text)
            kinds.append(str(error.value).split(":")[0])
    assert {"wrong count", "wrong class", "wrong place"} == set(kinds) and len(kinds) > 1000


def test_a_long_text_is_read_in_a_moment():
    for text in ("<p>" * 1000, "{<1>" * 1000, "no ships, " * 400, "the left of " * 300,
                 "1,0" * 1000, f"{SHIP}, " * 100):
        assert fault(text[:4000]) != "" or text.startswith(SHIP)
