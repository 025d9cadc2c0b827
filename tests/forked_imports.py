"""The first import of the fork server: SGLang with our plugin, as in ``speckv serve``."""

import setproctitle

from sglang_speckv.srt import compat, metrics, trace
from sglang_speckv.srt.engine import prepare

metrics.EVERY_SECONDS = trace.FLUSH_SECONDS = 0.1  # tests wait for both
prepare()
compat.check_installation()  # imports whatever the plugin hooks
setproctitle.setproctitle("speckv test servers")  # its first call needs an untouched environment
