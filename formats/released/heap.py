"""What glibc keeps of freed memory, given back to the system."""
import ctypes
import platform


def give_back() -> None:
    """glibc keeps freed blocks of less than 32 MiB between those in use; elsewhere do nothing."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
