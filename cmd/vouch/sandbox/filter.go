package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// An op is an instruction of a classic BPF program, which may have a label, and as a jump
// leads to others further on; "" is the next instruction.
type op struct {
	label   string
	code    uint16
	k       uint32
	yes, no string
}

func load(offset uint32) op     { return op{code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, k: offset} }
func loadByte(offset uint32) op { return op{code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, k: offset} }
func loadHalf(offset uint32) op { return op{code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, k: offset} }
func and(k uint32) op           { return op{code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, k: k} }
func ret(k uint32) op           { return op{code: unix.BPF_RET | unix.BPF_K, k: k} }

func jumpIf(test uint16, k uint32, yes, no string) op {
	return op{code: unix.BPF_JMP | test | unix.BPF_K, k: k, yes: yes, no: no}
}

func equal(k uint32, yes, no string) op { return jumpIf(unix.BPF_JEQ, k, yes, no) }

func (o op) at(label string) op {
	o.label = label
	return o
}

// assemble resolves the labels.
func assemble(ops []op) ([]unix.SockFilter, error) {
	places := make(map[string]int)
	for i, o := range ops {
		if o.label != "" {
			places[o.label] = i
		}
	}
	program := make([]unix.SockFilter, len(ops))
	for i, o := range ops {
		program[i] = unix.SockFilter{Code: o.code, K: o.k}
		for _, jump := range []struct {
			to  string
			out *uint8
		}{{o.yes, &program[i].Jt}, {o.no, &program[i].Jf}} {
			if jump.to == "" {
				continue
			}
			place, ok := places[jump.to]
			if skip := place - i - 1; ok && skip >= 0 && skip <= 255 {
				*jump.out = uint8(skip)
				continue
			}
			return nil, fmt.Errorf("filter: instruction %d cannot jump to %q", i, jump.to)
		}
	}
	return program, nil
}
