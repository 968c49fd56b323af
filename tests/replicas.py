"""A process with two CPU devices that runs quantizers on both: see `support.on_two_devices`.

Reads pickled lists of paths and pickled arguments from stdin, each after its length, and answers
('done', result), ('raised', message), or ('unknown', message) for what it cannot unpickle.
"""

import pickle
import struct
import sys


def main(source, target):
    while length := source.read(8):
        paths, payload = pickle.loads(source.read(*struct.unpack('<Q', length)))
        sys.path += [path for path in paths if path not in sys.path]
        answer = pickle.dumps(run(payload))
        target.write(struct.pack('<Q', len(answer)) + answer)
        target.flush()


def run(payload):
    from vqjax.testing.trial import replicated

    try:
        arguments = pickle.loads(payload)
    except Exception as error:  # noqa: BLE001 - a class this process cannot import
        return 'unknown', repr(error)
    try:
        return 'done', replicated(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever a wrong quantizer raises is the answer
        return 'raised', f'{type(error).__name__}: {error}'


if __name__ == '__main__':
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing that is printed gets among the answers
    main(sys.stdin.buffer, answers)
