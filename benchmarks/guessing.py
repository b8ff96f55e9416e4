"""How many model ids can be guessed from their pseudonyms, and how fast: one core, no key.

    python benchmarks/guessing.py

The guesser has what anyone has: the public ids, and a list of the very words that the private
ids of this benchmark are made of, so that he finds all of those: the rate shows the mode, not
the words. In public mode he knows the constant; in keyed mode he tries it, in vain.
"""

import itertools
import time

from sottovoce.privacy import catalogue
from sottovoce.privacy.pseudonyms import Pseudonyms

ORGANISATIONS = ["acme", "contoso", "globex", "initech", "umbrella", "hooli", "stark", "wayne"]
BASES = ["llama-3-8b", "mistral-7b", "qwen2.5-7b", "gpt-4o", "phi-3", "gemma-2-9b"]
PURPOSES = ["support", "legal", "hr", "sales", "medical", "code", "chat", "summaries"]
PRIVATE = [
    f"{organisation}/{base}-{purpose}-v{version}"
    for organisation, base, purpose, version in itertools.product(
        ORGANISATIONS, BASES, PURPOSES, range(1, 10)
    )
]
RANDOM = [f"{organisation}/{number:016x}" for organisation in ORGANISATIONS for number in range(99)]


def main():
    public = catalogue.ids()
    guesses = [*public, *PRIVATE]
    attacker = Pseudonyms(b"whatever the guesser takes", public=True)
    begin = time.perf_counter()
    known = {attacker.model(guess): guess for guess in guesses}
    seconds = time.perf_counter() - begin
    print(f"{len(guesses)} guesses in {seconds:.2f} s: {len(guesses) / seconds:,.0f} a second")
    print(f"{'ids that leave':40}{'public mode':>14}{'keyed':>10}")
    for what, ids in (
        ("of public models", public),
        ("private, of words that can be listed", PRIVATE),
        ("private, with 64 random bits", RANDOM),
    ):
        shares = []
        for victim in (
            Pseudonyms(b"a deployment's secret", public=True),
            Pseudonyms(b"a deployment's secret"),
        ):
            found = sum(known.get(victim.model(each)) == each for each in ids)
            shares.append(f"{found / len(ids):.1%}")
        print(f"{what:40}{shares[0]:>14}{shares[1]:>10}")


if __name__ == "__main__":
    main()
