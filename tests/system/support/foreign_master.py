"""pymodbus as a master of a node behind TCP port argv[1]: reads all, writes, and is refused what it should be."""

import sys

from pymodbus import FramerType
from pymodbus.client import ModbusTcpClient

UNIT = 1
requests = 0


def ask(method, *arguments, **options):
    global requests
    requests += 1
    return getattr(client, method)(*arguments, device_id=UNIT, **options)


def expect(what, got, wanted):
    assert got == wanted, f"{what}: {got} instead of {wanted}"


# Its patience covers a machine that is too busy to carry a frame in one piece.
client = ModbusTcpClient("127.0.0.1", port=int(sys.argv[1]), framer=FramerType.RTU, timeout=2, retries=5)
assert client.connect()
expect("contacts", ask("read_discrete_inputs", 0, count=9).bits[:8], [True, False, True] + [False] * 5)
inputs = ask("read_input_registers", 0, count=23).registers
expect("contact bits and counters", inputs[:9], [5, 1, 0, 1, 0, 0, 0, 0, 0])
expect("map version", ask("read_input_registers", 256, count=1).registers, [1])
settings = ask("read_holding_registers", 0, count=18).registers
expect("unit and speed", settings[:2], [1, 12])
expect("coils", ask("read_coils", 0, count=3).bits[:3], [False] * 3)
assert not ask("write_coil", 0, True).isError()
assert not ask("write_coils", 0, [True, True]).isError()
expect("coils that were written", ask("read_coils", 0, count=3).bits[:3], [True, True, False])
assert not ask("write_register", 4, 25).isError()
assert not ask("write_registers", 5, [26, 27]).isError()
expect("a draft", ask("read_holding_registers", 4, count=3).registers, [25, 26, 27])
both = ask("readwrite_registers", read_address=4, read_count=2, address=4, values=[20])
expect("written and read", both.registers, [20, 26])
expect("no such register", ask("read_input_registers", 5000, count=1).exception_code, 2)
expect("no such value", ask("write_register", 0, 0).exception_code, 3)
name = ask("read_device_information", read_code=1, object_id=0).information
assert name[1], name
print(f"{requests} requests, {name}")
