"""What the compile gate finds in a Hopper kernel's machine code and in the messages of ptxas."""

import re

# Instructions that a kernel for one architecture alone must contain: products of a warpgroup, tiles loaded by TMA.
INSTRUCTIONS = {"90a": ("HGMMA", "UTMALDG")}
# ptxas waits for products one by one (its messages C7500 to C7599), or does not move registers between warpgroups.
LOST_SPEED = re.compile(r"\bC75\d\d\b|setmaxnreg ignored")
# The waits for all but the newest group of products, and for all groups; the exponential.
WAIT_FOR_OLDER, WAIT_FOR_ALL, EXPONENTIAL = r"DEPBAR\.LE gsb0, 0x1", r"DEPBAR\.LE gsb0, 0x0", "MUFU.EX2"


def lost_speed(report: str) -> tuple[str, ...]:
    """Return a complaint for each message of ptxas about lost speed, without repetitions."""
    return tuple(
        dict.fromkeys(f"ptxas says: {line.strip()}" for line in report.splitlines() if LOST_SPEED.search(line))
    )


def faults_of_code(name: str, variant: str, text: str, architecture: str) -> tuple[str, ...]:
    """Return what is wrong with the machine code of a kernel for this architecture."""
    faults = [f"its machine code lacks {wanted}" for wanted in INSTRUCTIONS[architecture] if f" {wanted}" not in text]
    if name == "sm90_forward_pass":
        # The last arguments are D, tile and stages. Each of 128 threads has tile / 2 of the 64 · tile weights.
        tile = int(re.findall(r"\d+", variant)[-2])
        count, expected = overlapped_exponentials(text), tile // 2
        if count < expected:
            faults.append(
                f"{count} of {expected} exponentials of a tile run before the wait for the last tile's product"
            )
    return tuple(faults)


def overlapped_exponentials(text: str) -> int:
    """Return how many exponentials stand between the wait for a tile's logits and the wait for the last tile's outputs.

    They run while the tensor cores multiply the last tile's weights. In the source the wait follows them, but ptxas may
    move it up.
    """
    between = re.findall(f"{WAIT_FOR_OLDER}(.*?){WAIT_FOR_ALL}", text, re.DOTALL)
    counts = [part.count(EXPONENTIAL) for part in between]
    return min((count for count in counts if count), default=0)  # the worst copy of the loop, if ptxas has copied it
