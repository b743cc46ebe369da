//go:build !unix

package socket

const canWriteRaw = false

func writeRaw(uintptr, []byte) (int, error) { panic("socket: no raw writes here") }
