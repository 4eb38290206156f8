package pod

import (
	"bytes"
	"encoding/binary"
	"runtime"
)

// pauseProgram is a program that ignores SIGCHLD, so that the kernel reaps for
// it whoever is left an orphan in its PID namespace, and waits for ever. Signals
// that it does not handle do not reach a namespace's first process, but for a
// kill from outside. nil: there is none for this machine.
func pauseProgram() []byte {
	switch runtime.GOARCH {
	case "amd64":
		return executable(machineAMD64, []byte{
			0x6a, 0x00, //                         push 0              mask
			0x6a, 0x00, //                         push 0              restorer
			0x6a, 0x00, //                         push 0              flags
			0x6a, 0x01, //                         push SIG_IGN        handler
			0x48, 0x89, 0xe6, //                   mov  rsi, rsp
			0xbf, 0x11, 0x00, 0x00, 0x00, //       mov  edi, SIGCHLD
			0x31, 0xd2, //                         xor  edx, edx
			0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov  r10d, 8
			0xb8, 0x0d, 0x00, 0x00, 0x00, //       mov  eax, rt_sigaction
			0x0f, 0x05, //                         syscall
			0xb8, 0x22, 0x00, 0x00, 0x00, // wait: mov  eax, pause
			0x0f, 0x05, //                         syscall
			0xeb, 0xf7, //                         jmp  wait
		})
	case "arm64":
		return executable(machineARM64, words(
			0xd10083ff, //       sub  sp, sp, #32
			0xd2800020, //       mov  x0, SIG_IGN
			0xa9007fe0, //       stp  x0, xzr, [sp]       handler, flags
			0xa9017fff, //       stp  xzr, xzr, [sp, #16] restorer, mask
			0xd2800220, //       mov  x0, SIGCHLD
			0x910003e1, //       mov  x1, sp
			0xd2800002, //       mov  x2, #0
			0xd2800103, //       mov  x3, #8
			0xd28010c8, //       mov  x8, rt_sigaction
			0xd4000001, //       svc  #0
			0xd2800000, // wait: mov  x0, #0
			0xd2800001, //       mov  x1, #0
			0xd2800002, //       mov  x2, #0
			0xd2800003, //       mov  x3, #0
			0xd2800004, //       mov  x4, #0
			0xd2800928, //       mov  x8, ppoll
			0xd4000001, //       svc  #0
			0x17fffff9, //       b    wait
		))
	}
	return nil
}

func words(all ...uint32) []byte {
	var b []byte
	for _, w := range all {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

const (
	machineAMD64 = 62
	machineARM64 = 183
)

// executable is an ELF file of one segment that holds code and nothing else.
func executable(machine uint16, code []byte) []byte {
	const (
		base    = 0x400000
		headers = 64 + 56 // of the file, of the segment
	)
	var b bytes.Buffer
	put := func(fields ...any) {
		for _, f := range fields {
			_ = binary.Write(&b, binary.LittleEndian, f) // a Buffer never fails
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00") // 64 bits, little endian
	put(uint16(2), machine, uint32(1), uint64(base+headers), uint64(64), uint64(0), uint32(0))
	put(uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0))
	size := uint64(headers + len(code))
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x10000)) // to be read and run
	b.Write(code)
	return b.Bytes()
}
