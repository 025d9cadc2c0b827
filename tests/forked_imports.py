"""The first import of the fork server: SGLang with our plugin, as in ``speckv serve``."""

import setproctitle

from sglang_speckv.srt import compat
from sglang_speckv.srt.engine import prepare

prepare()
compat.check_installation()  # imports whatever the plugin hooks
setproctitle.setproctitle("speckv test servers")  # its first call needs an untouched environment
