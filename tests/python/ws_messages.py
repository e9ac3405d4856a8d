"""The messages of a long WebSocket conversation: mixed sizes, text and binary, the same in every run."""

import random


def messages(count):
    dice = random.Random(count)
    noise = dice.randbytes(1 << 20)
    text = "".join(dice.choice("abcdefghijkäö€ \n") for _ in range(70_000))
    for index in range(count):
        if index % 2000 == 1999:
            size = 1 << 20
        elif index % 250 == 249:
            size = dice.randrange(65_536)
        elif index % 50 == 49:
            size = 0
        else:
            size = dice.randrange(300)
        if dice.randrange(2) == 0 and size < len(text):
            yield text[:size]
        else:
            yield noise[:size]
