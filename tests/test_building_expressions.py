"""What is said of random layouts of boxes is true, and true of one object alone."""
import random
from collections import Counter, defaultdict

import pytest

import expression_oracle
import talk_oracle
from support.building.descriptions import (
    describe_global,
    describe_local,
    grounded_text,
    plain_text,
)
from support.building.expressions import (
    OTHER_NAMES,
    VAGUE,
    Expression,
    Layout,
    Thing,
    absent_names,
    counted,
    find_expressions,
    may_be_called,
    object_rows,
    plural,
    singular,
    words_of,
)
from support.building.talks import (
    Known,
    compose,
    conversation_row,
    follow_up,
    object_chains,
)
from support.common import ABSENT

LABELS = {"ship": 30, "harbor": 20, "storage tank": 15, "vehicle": 8, "car": 40, "van": 9,
          "truck": 12, "pushback truck": 3, "bridge": 7, "overpass": 6, "airplane": 11, "other": 2}
LAYOUTS = 250


def random_layout(seed: int) -> Layout:
    """Up to 14 boxes of a few classes, in every third layout on a coarse grid, so that there are
    ties; of every fifth one a class could not be read."""
    rng = random.Random(seed)
    names = rng.sample(sorted(LABELS), rng.randint(1, 4))
    step = 8 if seed % 3 == 0 else 1000
    things = []
    for _ in range(rng.randint(1, 14)):
        x, y = rng.randrange(step) / step, rng.randrange(step) / step
        w, h = (rng.choice((1, 2, 3)) / 8 if step == 8 else rng.uniform(.004, .4) for _ in "wh")
        things.append(Thing(rng.choice(names), (x, y, min(x + w, 1.0), min(y + h, 1.0))))
    return Layout(tuple(things), frozenset(names[:1] if seed % 5 == 0 else ()))


def by_class(layout: Layout) -> dict:
    things = defaultdict(list)
    for thing in layout.things:
        things[thing.name].append(thing.box)
    return things


@pytest.fixture(scope="module")
def layouts():
    return [random_layout(seed) for seed in range(LAYOUTS)]


# ---- expressions ---------------------------------------------------------------------------------

def test_every_expression_names_exactly_one_object(layouts):
    kinds = Counter()
    for layout in layouts:
        for expression in find_expressions(layout):
            found = expression_oracle.denoted(expression.words, by_class(layout), (1, 1))
            assert found == [expression.thing.box], expression
            kinds[expression.words.replace(expression.thing.name, "X")] += 1
    for words in ("the X", "the leftmost X", "the X at the top", "the largest X",
                  "the X in the", "the X above", "the X nearest to"):
        assert any(kind.startswith(words) for kind in kinds), words
    assert kinds["the second X from the left"] and kinds["the second X from the bottom"]


def test_nothing_is_said_of_an_object_whose_class_others_may_be_called(layouts):
    """A car beside a vehicle, a truck beside a pushback truck."""
    assert may_be_called("pushback truck", "truck") and not may_be_called("truck", "pushback truck")
    assert may_be_called("vehicle", "car") and may_be_called("car", "vehicle")
    assert not may_be_called("car", "truck") and not may_be_called("small vehicle", "large vehicle")
    for layout in layouts:
        for expression in find_expressions(layout):
            others = layout.names() - {expression.thing.name}
            assert not any(may_be_called(other, expression.thing.name) for other in others)
            assert expression.thing.name not in VAGUE | layout.unclear


def test_a_box_that_is_there_twice_makes_its_class_unclear():
    ship = Thing("ship", (.1, .1, .3, .3))
    again = Thing("ship", (.1, .1, .3, .29))
    harbor = Thing("harbor", (.5, .5, .9, .9))
    assert list(Layout((ship, harbor)).clear_groups()) == ["ship", "harbor"]
    assert list(Layout((ship, harbor, again)).clear_groups()) == ["harbor"]


def test_nearly_equal_objects_are_not_told_apart():
    """A difference under the margin is none: neither by place, nor by size, nor by distance."""
    ships = [Thing("ship", (x, y, x + .1, y + .1)) for x, y in ((.40, .1), (.43, .13))]
    assert find_expressions(Layout(tuple(ships))) == []
    harbor = Thing("harbor", (.4, .6, .6, .8))
    words = [found.words for found in find_expressions(Layout((*ships, harbor)))]
    assert words == ["the harbor"]


# ---- samples -------------------------------------------------------------------------------------

def test_every_sample_of_objects_is_true(layouts):
    tasks, answers = Counter(), Counter()
    for seed, layout in enumerate(layouts):
        things = by_class(layout)
        for row in object_rows(layout, LABELS, (), random.Random(seed)):
            [(question, answer)] = row["turns"]
            fault = expression_oracle.fault_of(row["task"], question, answer, list(row["boxes"]),
                                               things, (1, 1))
            assert not fault, (row, fault)
            tasks[row["task"], row["kind"]] += 1
            answers[row["kind"], answer] += 1
    assert min(tasks[key] for key in (("refer", ""), ("detection", ""), ("identify", ""),
                                      ("vqa", "presence"), ("vqa", "count"), ("vqa", "comp"),
                                      ("vqa", "relation"))) > 20
    assert answers["presence", "yes"] == answers["presence", "no"] > 100
    assert answers["", ABSENT] > 50
    for kind in ("comp", "relation"):
        assert 0.35 < answers[kind, "yes"] / (answers[kind, "yes"] + answers[kind, "no"]) < 0.65


def test_no_negative_names_what_is_there_under_this_or_another_name(layouts):
    for layout in layouts:
        absent = absent_names(layout, LABELS)
        for name in absent:
            assert not any(may_be_called(own, name) for own in layout.names())
        if layout.names() & VAGUE:
            assert absent == []


def test_no_negative_names_what_a_text_mentions():
    layout = Layout((Thing("ship", (.1, .1, .3, .3)),))
    assert "car" in absent_names(layout, LABELS, words_of("a harbor with many ships"))
    for text, name in (("some vehicles are parked", "car"), ("cars on a road", "vehicle"),
                       ("white tanks", "storage tank"), ("a viaduct", "bridge"),
                       ("a viaduct", "overpass"), ("planes", "airplane"), ("the port", "harbor")):
        assert name in absent_names(layout, LABELS), name
        assert name not in absent_names(layout, LABELS, words_of(text)), text


def test_the_same_seed_gives_the_same_samples(layouts):
    for layout in layouts[:20]:
        some, same = (object_rows(layout, LABELS, (), random.Random(7)) for _ in range(2))
        assert some == same


@pytest.mark.parametrize("one, many", [
    ("bridge", "bridges"), ("overpass", "overpasses"), ("storage tank", "storage tanks"),
    ("aircraft", "aircraft"), ("bus", "buses"), ("ferry", "ferries"), ("tennis court",
                                                                    "tennis courts")])
def test_singular_and_plural_of_classes(one, many):
    assert plural(one) == many and singular(many) == one and singular(one) == one


def test_the_table_of_other_names_is_in_singular():
    for word, others in OTHER_NAMES.items():
        assert all(singular(other) == other for other in [word, *others.split()])


# ---- descriptions --------------------------------------------------------------------------------

def test_descriptions_count_and_place_right(layouts):
    described = 0
    for seed, layout in enumerate(layouts):
        things = by_class(layout)
        text, boxes = grounded_text(describe_global(layout, (), (), random.Random(seed)))
        for phrase in text.split("<p>")[1:]:
            words = phrase.split("</p>")[0]
            count = phrase.count("<bbox>")
            name = next(name for name in things if words == counted(count, name))
            assert len(things[name]) == count
        local = describe_local(layout)
        plain = plain_text(local)
        assert "<" not in plain and not plain.endswith(" ")
        for name, group in things.items():
            if local and len(layout.things) <= 8 and name in layout.clear_groups():
                for box in group:
                    cell = expression_oracle.cell(box, (1, 1))
                    assert f" {name} is in the {cell}" in plain
                    described += 1
    assert described > 100


def test_a_neighbor_is_on_the_side_that_is_said():
    layout = Layout((Thing("ship", (.1, .45, .2, .55)), Thing("harbor", (.5, .4, .7, .6))))
    text = plain_text(describe_local(layout))
    assert text == ("A medium-sized ship is in the center left, left of a harbor. "
                    "A medium-sized harbor is in the center, right of a ship.")


# ---- conversations -------------------------------------------------------------------------------

def talks(layouts, **more):
    for seed, layout in enumerate(layouts):
        rng = random.Random(seed)
        chains = object_chains(layout, absent_names(layout, LABELS), LABELS, rng)
        chosen = compose(chains, sorted(LABELS), (2, 6), rng)
        if chosen:
            yield layout, chosen, conversation_row(chosen, rng)


def test_every_turn_is_true_and_none_was_given_away(layouts):
    kinds, lengths = Counter(), Counter()
    for layout, chosen, row in talks(layouts):
        things, told, it = by_class(layout), talk_oracle.Talk(LABELS), None
        assert "the the" not in str(row["turns"])
        lengths[len(chosen)] += 1
        assert len(row["turns"]) == len(chosen) and row["task"] == "conversation"
        assert sum(strip.count("<bbox>") for turn in row["turns"] for strip in turn) == len(
            row["boxes"])
        for turn in chosen:
            kinds[turn.task, turn.kind, turn.follows] += 1
            if turn.follows:
                check_follow_up(turn, things, it)
            else:
                fault = expression_oracle.fault_of(turn.task, turn.question, turn.answer,
                                                   list(turn.boxes), things, (1, 1))
                assert not fault, (turn, fault)
            said = talk_oracle.Turn(turn.task, turn.question, turn.answer, turn.boxes)
            assert not told.gives_away(said), (said, told.gives_away(said))
            told.add(said)
            it = turn.boxes[0] if turn.task == "refer" and turn.boxes else None
    assert max(lengths) == 6 and min(lengths) == 2
    assert kinds["refer", "", True] and kinds["vqa", "relation", True] > 10


def check_follow_up(turn, things, it):
    """it: the box that the turn before was about."""
    assert it is not None
    if turn.task == "refer":
        name = turn.question.removeprefix("the ").removesuffix(" nearest to it")
        others = [box for box in things[name] if box != it]
        assert expression_oracle.first(
            others, lambda box: expression_oracle.distance(box, it)) == list(turn.boxes)
        return
    side = next(side for side in expression_oracle.SIDES if f" {side} it" in turn.question)
    name = next(name for name in sorted(things, key=len, reverse=True)
                if f" {name} {side}" in turn.question
                or f" {plural(name)} are {side}" in turn.question)
    count = sum(expression_oracle.SIDES[side](box, it) for box in things[name] if box != it)
    assert turn.answer in (str(count), "yes" if count else "no")


def test_a_side_is_asked_for_only_where_all_of_a_class_are_clearly_on_it_or_not():
    """The second ship is a little to the left of the first one, and clearly above it."""
    ship, other = Thing("ship", (.4, .6, .5, .7)), Thing("ship", (.38, .1, .48, .2))
    it = Expression("the ship at the bottom", ship)
    asked = {follow_up(it, {"ship": [ship, other]}, random.Random(seed)).question
             for seed in range(60)}
    assert any("above it" in text for text in asked) and any("right of it" in text
                                                             for text in asked)
    assert not any("left of it" in text for text in asked)


@pytest.mark.parametrize("words, axis", [("the leftmost ship", 0), ("the ship at the top", 1),
                                         ("the second ship from the left", 0),
                                         ("the ship below the harbor", 1)])
def test_no_side_is_asked_for_that_the_expression_tells(words, axis):
    """Neither of its class nor of the one that it names."""
    ships = [Thing("ship", (x, y, x + .1, y + .1)) for x, y in ((.1, .1), (.3, .3), (.5, .8))]
    harbor = Thing("harbor", (.4, .5, .6, .6))
    layout = Layout((*ships, harbor)) if "harbor" in words else Layout(tuple(ships))
    [it] = [found for found in find_expressions(layout) if found.words == words]
    name = "harbor" if "harbor" in words else "ship"
    turns = [follow_up(it, {name: layout.groups()[name]}, random.Random(seed))
             for seed in range(40)]
    asked = " ".join(turn.question for turn in turns if turn)
    assert not any(f"{side} it" in asked for side in (("left of", "right of"), ("above", "below")
                                                      )[axis])


def test_no_box_is_asked_for_that_a_turn_has_named(layouts):
    for _, chosen, _ in talks(layouts):
        known = Known(sorted(LABELS))
        for turn in chosen:
            assert not turn.boxes or not all(map(known.has_box, turn.boxes))
            known.add(turn)
