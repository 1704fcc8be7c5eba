"""A search space: all candidates, balanced samples, and clear words for what cannot be searched."""

import itertools
from collections import Counter

import pytest
from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.nas.search_space import candidate_builder, check_factory, name_of
from tgdd_plugin.nas.settings import CONVNETS, NasSettings, SearchSpace

SMALL = {"depth": [1, 2], "norm": ["none", "batch", "layer"], "width": [4, 8]}


def test_the_fields_grid_has_720_convnets():
    grid = SearchSpace().grid()
    assert len(grid) == SearchSpace().size == 720
    assert len({tuple(arguments.items()) for arguments in grid}) == 720


def test_the_grid_is_the_product_of_the_choices():
    expected = [dict(zip(SMALL, values, strict=True)) for values in itertools.product(*SMALL.values())]
    assert SearchSpace(choices=SMALL).grid() == expected


@pytest.mark.parametrize("count", [1, 7, 30, 120, 360, 361, 700, 720])
def test_a_sample_has_every_value_equally_often(count):
    chosen = SearchSpace().sample(count, seed=3)
    assert len({tuple(arguments.items()) for arguments in chosen}) == count
    for name, values in CONVNETS.items():
        often = Counter(arguments[name] for arguments in chosen)
        assert max(often.values()) - min(often[value] for value in values) <= 1
    assert chosen == SearchSpace().sample(count, seed=3)
    assert count == 720 or chosen != SearchSpace().sample(count, seed=4)


def test_a_sample_of_all_is_all():
    space = SearchSpace(choices=SMALL)
    by_name = {name_of(arguments) for arguments in space.sample(12)}
    assert by_name == {name_of(arguments) for arguments in space.grid()}


@pytest.mark.parametrize("sampled", [0, 20, 400])
def test_a_sequence_goes_on_where_a_shorter_one_ends(sampled):
    space = SearchSpace()
    whole = space.sequence(720, 3, sampled)
    assert {name_of(arguments) for arguments in whole} == {name_of(arguments) for arguments in space.grid()}
    assert whole[:sampled] == (space.sample(sampled, 3) if sampled else [])
    for count in (sampled + 1, sampled + 7, 500):
        assert space.sequence(count, 3, sampled) == whole[:count]
    for count in (sampled + 1, sampled + 7, sampled + 50, 500, 700):
        for name, values in CONVNETS.items():
            often = Counter(arguments[name] for arguments in whole[:count])
            assert max(often.values()) - min(often[value] for value in values) <= (1 if count < 50 else 2)
    assert space.sequence(20, 4, sampled) != whole[:20] or sampled > 20


def test_a_sequence_of_a_space_too_large_to_list_is_quick():
    space = SearchSpace(choices={str(number): [1, 2, 3] for number in range(40)})
    assert len({tuple(arguments.values()) for arguments in space.sequence(200)}) == 200


def test_a_candidate_is_built_for_the_images():
    network = candidate_builder(SearchSpace(choices=SMALL), {"depth": 2, "norm": "batch", "width": 8}, (1, 16, 16), 5)()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(1, 8), (8, 8)]
    assert network.classifier.out_features == 5


def test_of_arguments_that_torch_refuses_in_many_lines_the_first_is_told():
    space = SearchSpace("torch.nn:Conv2d", {"out_channels": [True]})
    arguments = {"out_channels": True, "kernel_size": 3}
    with pytest.raises(TypeError) as torchs:
        nn.Conv2d(1, **arguments)
    first, *others = str(torchs.value).splitlines()
    with pytest.raises(
        InputError, match=r"`network` must have arguments .* \(TypeError: empty\(\) .*\)\. Correct"
    ) as error:
        candidate_builder(space, arguments, (1, 8, 8), 3)()
    assert others and first[:60] in str(error.value)
    assert not any(line.strip() in str(error.value) for line in others if line.strip(" )"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": {}}, "`choices` must be a non-empty section of keys and values, got {}"),
        ({"choices": {"depth": []}}, r"`choices.depth` must be a non-empty list of .*, got \[\]"),
        ({"choices": {"depth": 3}}, "`choices.depth` must be a non-empty list of .*, got 3"),
        (
            {"choices": {"depth": [[1]]}},
            r"`choices.depth\[0\]` must be text, a finite number, true or false or null, got \[1\]",
        ),
        (
            {"choices": {"depth": [1, 1]}},
            r"`choices.depth` must be a list of different values, also to look at, got \[1, 1\]",
        ),
        ({"choices": {"depth": [1, True]}}, r"`choices.depth` must be a list of different values, .*got \[1, True\]"),
        (
            {"choices": {"depth": [1, "1"]}},
            r"`choices.depth` must be a list of different values, also to look at, got \[1, '1'\]",
        ),
        (
            {"choices": {"depth": [1.5, float("inf")]}},
            r"`choices.depth\[1\]` must be text, a finite number, true or false or null, got inf",
        ),
        ({"sampler": "bayes"}, "`sampler` must be one of grid, tpe, got 'bayes'"),
        ({"cost": "money"}, "`cost` must be one of parameters, latency, got 'money'"),
        ({"validation": 1.0}, "`validation` must be a finite number above 0 and below 1, got 1.0"),
        ({"workers": 0}, "at least 1"),
        ({"candidates": 721}, "`candidates` must be from 1 to 720, the size of the space, got 721"),
        ({"candidates": 0}, "`candidates` must be a whole number of at least 1, or null, got 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        NasSettings(**settings)


@pytest.mark.parametrize("count", [0, 13])
def test_a_sample_of_more_than_there_are_is_refused(count):
    with pytest.raises(InputError, match="`candidates` must be from 1 to 12, the size of the space"):
        SearchSpace(choices=SMALL).sample(count)


def test_an_argument_that_the_factory_does_not_take_is_refused():
    for name in ("deep", "num_classes"):
        refusal = f"`nas.choices` must be arguments of 'convnet', got '{name}'. Choose from depth, width, norm"
        with pytest.raises(InputError, match=refusal):
            check_factory(SearchSpace(choices={name: [1]}))
    with pytest.raises(InputError, match="`nas.factory` must be a function that can be imported, got 'nowhere"):
        check_factory(SearchSpace("nowhere:network", SMALL))
    check_factory(SearchSpace(choices=SMALL))
