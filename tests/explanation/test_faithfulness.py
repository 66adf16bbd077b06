"""The scores equal plain loops and a dense solver; a true map is told from a random one."""

import numpy as np
import pytest
import torch

from cvt_cli.explanation import faithfulness as scoring

SIZE = 12


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()


def answer(pictures: torch.Tensor) -> torch.Tensor:
    """A probability that rests on the upper left quarter alone."""
    return torch.sigmoid(pictures[:, :, : SIZE // 2, : SIZE // 2].square().sum((1, 2, 3)) / 40 - 1)


def test_saco_is_the_one_of_its_authors_by_plain_loops(picture: torch.Tensor) -> None:
    values = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(2)).double()
    order = values.flatten().argsort(descending=True, stable=True)
    groups = np.array_split(order.numpy(), scoring.GROUPS)
    whole, strengths, drops = float(answer(picture[None])), [], []
    for group in groups:
        without = picture.clone().flatten(1)
        for channel in range(3):
            without[channel, group] = picture[channel].mean()
        drops.append(whole - float(answer(without.view(1, 3, SIZE, SIZE))))
        strengths.append(float(values.flatten()[group].sum()))
    found = total = 0.0
    for i in range(len(groups)):
        for j in range(i + 1, len(groups)):
            weight = strengths[i] - strengths[j]
            found += weight if drops[i] >= drops[j] else -weight
            total += abs(weight)

    assert abs(scoring.saco(answer, picture, values, order) - found / total) < 1e-12


def test_the_scores_of_a_map_take_about_sixty_passes_as_help_says(picture: torch.Tensor) -> None:
    asked = 0

    def counting(pictures: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(pictures)
        return answer(pictures)

    scoring.scores(counting, picture, torch.arange(SIZE * SIZE).view(SIZE, SIZE).double())

    assert asked == 61


def test_deletion_is_the_area_under_the_probability_by_plain_loops(picture: torch.Tensor) -> None:
    order = torch.randperm(SIZE * SIZE, generator=torch.Generator().manual_seed(3))
    told = []
    for step in range(scoring.STEPS + 1):
        gone = picture.clone().flatten(1)
        gone[:, order[: round(step / scoring.STEPS * len(order))]] = 0
        told.append(float(answer(gone.view(1, 3, SIZE, SIZE))))

    wanted = np.trapezoid(told, dx=1 / scoring.STEPS)

    assert abs(scoring.deletion(answer, picture, order) - wanted) < 1e-12


def test_missing_pixels_are_filled_in_as_a_dense_solver_does(
    picture: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_NOISE", 0.0)
    mask = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(4)) < 0.7
    places = [tuple(place) for place in mask.nonzero().tolist()]
    matrix, right = np.zeros((len(places),) * 2), np.zeros((len(places), 3))
    for row, (y, x) in enumerate(places):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near = (y + dy, x + dx)
                if (dy, dx) == (0, 0) or not all(0 <= side < SIZE for side in near):
                    continue
                weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
                matrix[row, row] += weight
                if near in places:
                    matrix[row, places.index(near)] -= weight
                else:
                    right[row] += weight * picture[:, near[0], near[1]].numpy()
    wanted = picture.clone()
    wanted[:, mask] = torch.from_numpy(np.linalg.solve(matrix, right).T)

    found = scoring.filled_in(picture, mask[None, None])[0]

    assert (found - wanted).abs().max() < 0.01 and torch.equal(found[:, ~mask], picture[:, ~mask])


def test_a_map_of_what_is_looked_at_is_told_from_its_opposite_and_from_chance(
    picture: torch.Tensor,
) -> None:
    true = torch.zeros(SIZE, SIZE)
    true[: SIZE // 2, : SIZE // 2] = 1
    found = {
        name: scoring.scores(answer, picture.float(), values)
        for name, values in (("true", true), ("false", 1 - true))
    }

    assert found["true"].saco > 0.5 > -0.2 > found["false"].saco
    assert found["true"].road > 0 > found["false"].road
    assert found["true"].deletion < found["false"].deletion
    assert found["true"].insertion > found["false"].insertion
    for flat in (0, 1):  # 144 pixels are no ten groups of equally many
        values = torch.full_like(true, flat)
        assert scoring.saco(answer, picture, values, torch.arange(SIZE * SIZE)) == 0
