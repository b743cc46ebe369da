//go:build unix

package socket

import "syscall"

const canWriteRaw = true

// writeRaw writes what fits into the kernel's buffer; that may be nothing.
func writeRaw(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), p)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, nil
		default:
			return 0, err
		}
	}
}
