"""Makes the file that is copied onto an RP2040 in its bootloader: uf2.py IMAGE.elf IMAGE.uf2

UF2 is blocks of 512 bytes, each with 256 bytes of flash and where they go (RP2040 data sheet, section 2.8.4.2).
"""

import struct
import sys

PAGE = 256
RP2040 = 0xE48BFF56
HAS_FAMILY = 0x2000


def segments(elf):
    """Physical address and bytes of whatever is loaded, by the program headers of a 32-bit little-endian ELF."""
    start, size, count = struct.unpack_from("<I", elf, 28) + struct.unpack_from("<HH", elf, 42)
    for at in range(start, start + count * size, size):
        kind, offset, _, physical, length = struct.unpack_from("<5I", elf, at)
        if kind == 1 and length > 0:
            yield physical, elf[offset : offset + length]


def pages(elf):
    flash = {}
    for address, data in segments(elf):
        for at, byte in enumerate(data, address):
            flash.setdefault(at // PAGE, bytearray(b"\xff" * PAGE))[at % PAGE] = byte
    return sorted(flash.items())


def main(image, target):
    with open(image, "rb") as file:
        found = pages(file.read())
    with open(target, "wb") as file:
        for number, (page, data) in enumerate(found):
            head = (0x0A324655, 0x9E5D5157, HAS_FAMILY, page * PAGE, PAGE, number, len(found), RP2040)
            file.write(struct.pack("<8I", *head) + data.ljust(476, b"\0") + struct.pack("<I", 0x0AB16F30))


main(*sys.argv[1:])
