"""Eigenvalues and eigenvectors of second moments. Readers of the stores apply a rank rule to them."""

from dataclasses import dataclass

from nullbooth.statistics.projector import decompose
from nullbooth.statistics.records import EigenStore, MomentStore
from nullbooth.storage.progress import reporter


@dataclass(frozen=True)
class Earlier:
    """Moments of subjects learned before, to be added to those of the protected prompts.

    Rank rules refer to the eigenvalues of the protected prompts alone, so that no subject weakens the protection.
    """

    moments: tuple[str, ...]  # stores of the subjects
    identities: tuple[dict, ...]  # of these stores
    weight: float  # of each subject
    step: str  # index of the timestep, or "pooled"
    alone: str  # EigenStore of the protected prompts alone
    statistics: dict  # identity of the statistics of the protected prompts


def decompose_store(out: str, covariance: str, identity: dict, earlier: Earlier | None = None) -> None:
    """Decompose the second moments of the MomentStore `covariance` and write an EigenStore to `out`.

    identity: of the result and, without `earlier`, of `covariance`; with `earlier`, that of `covariance` is
    `earlier.statistics`. Raises StoreError and ProjectorError.
    """
    of_statistics = earlier.statistics if earlier else identity
    store = MomentStore(covariance, of_statistics)
    alone = EigenStore(earlier.alone, of_statistics) if earlier else None
    given = zip(earlier.moments, earlier.identities, strict=True) if earlier else ()
    subjects = [MomentStore(path, made_for) for path, made_for in given]
    pairs, references, report = {}, {}, reporter("features")
    for i, feature in enumerate(store.features, 1):
        name = feature.name
        c, where = store.second_moment(name), f"{name} in {covariance}"
        if earlier and alone:
            references[name] = alone.values(name)
            steps = list(range(len(store.timesteps))) if earlier.step == "pooled" else [int(earlier.step)]
            steps = [0] if feature.static else steps
            c += earlier.weight * sum(subject.mean_moment(name, steps) for subject in subjects)
            where += f", with {len(subjects)} subjects"
        pairs[name] = decompose(c, where)
        report(i, len(store.features))
    EigenStore.write(out, pairs, references, store, identity)
