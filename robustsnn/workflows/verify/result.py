"""What was found when a run was verified, in words and as an exit code."""

from __future__ import annotations

from dataclasses import dataclass

from robustsnn.common.wording import count

#: The fraction of verdicts that may differ, because a spike at its threshold flips with the
#: machine, and the fraction of those of a single attack.
TOLERATED, TOLERATED_OF_ONE = 0.005, 0.01
#: The exit codes of the command: everything was seen, something is wrong, something was not seen.
VERIFIED, NOT_VERIFIED, PARTLY = 0, 1, 3


@dataclass(frozen=True)
class Verification:
    """The result of verifying a run.

    Args:
        images: The number of saved images, which were scored again.
        verdicts: The number of verdicts that were compared.
        differing: The id of the image and the attack, with its norm and size, of each verdict that
            differs.
        outside: The number of saved images outside their ball or range.
        rows: The number of rows of `results.csv`, worst cases included, that do not follow from
            the records.
        contradictory: The number of records whose margin contradicts their prediction.
        incomplete: The number of attacks without exactly one record for each image of the run.
        diagnosis: The differences between the flags and the level that follow from manifest and
            records and those that the run states, one sentence each.
        unknowable: Whether the run is too old to be diagnosed again.
        densities: The differences between the weights that the model has and those that the run
            states, one sentence each.
        miscounted: The number of saved images whose synaptic operations are not the recorded ones;
            none for runs that did not count them.
        samples: The number of images of the run.
        claims: What else the folder says and is not so, one sentence each.
        unseen: What could not be checked, one sentence each.
        digest: The digest of the manifest, to be quoted together with its numbers.
    """

    images: int
    verdicts: int
    differing: tuple[tuple[int, str], ...]
    outside: int
    rows: int
    contradictory: int = 0
    incomplete: int = 0
    diagnosis: tuple[str, ...] = ()
    unknowable: bool = False
    densities: tuple[str, ...] = ()
    miscounted: int = 0
    samples: int = 0
    claims: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    digest: str = ""

    @property
    def wrong(self) -> tuple[str, ...]:
        """What speaks against the run, one sentence each; empty if nothing does."""
        parts = [*self.claims]
        if self._too_many():
            parts.append(
                f"{len(self.differing)} of {self.verdicts} verdicts on {self.images} saved images "
                "differ"
            )
        if self.outside:
            parts.append(f"{self.outside} saved images are outside their ball or range")
        if self.rows:
            parts.append(f"{self.rows} rows of results.csv do not follow from the records")
        if self.contradictory:
            parts.append(f"{self.contradictory} records have a margin of another prediction")
        if self.incomplete:
            parts.append(f"{self.incomplete} attacks have not a record of each image")
        if self.miscounted > TOLERATED * self.verdicts:
            parts.append(
                f"{self.miscounted} saved images take other synaptic operations than recorded"
            )
        return (*parts, *self.diagnosis, *self.densities)

    def _too_many(self) -> bool:
        """Whether more verdicts differ than rounding explains, in all or of one attack."""
        if len(self.differing) > TOLERATED * self.verdicts:
            return True
        attacks = [attack for _, attack in self.differing]
        return any(
            attacks.count(attack) > TOLERATED_OF_ONE * self.images for attack in set(attacks)
        )

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the run; the whole of it need not have been seen."""
        return not self.wrong

    @property
    def complete(self) -> bool:
        """Whether every image and every claim was seen."""
        return self.images == self.samples and not self._unseen()

    @property
    def code(self) -> int:
        """The exit code of the command: 0 verified, 3 verified in part, 1 not verified."""
        if not self.passed:
            return NOT_VERIFIED
        return VERIFIED if self.complete else PARTLY

    @property
    def sentence(self) -> str:
        """The result in one line.

        Examples:
            >>> Verification(4, 8, (), 0, 0, samples=4).sentence
            'verified: all of 4 images.'
            >>> Verification(24, 48, (), 0, 0, samples=10_000).sentence
            'partly verified: 24 of 10,000 images.'
        """
        if not self.passed:
            return f"not verified: {'; '.join(self.wrong)}."
        whole = self.images == self.samples
        seen = f"all of {count(self.samples, 'image')}"
        if not whole:
            seen = f"{self.images:,} of {count(self.samples, 'image')}"
        some = len(self.differing)
        few = (
            [f"{count(some, 'verdict')} of {self.verdicts} may differ by rounding"] if some else []
        )
        word = "verified" if self.complete else "partly verified"
        return f"{word}: {'; '.join([seen, *few, *self._unseen()])}."

    def _unseen(self) -> tuple[str, ...]:
        if not self.unknowable:
            return self.unseen
        return (
            *self.unseen,
            "flags and level were not taken again, as the run is too old to say what its attacks "
            "were",
        )
