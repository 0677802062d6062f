package sandbox

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheSameAttemptIsReportedOnceASecondAndCounted(t *testing.T) {
	t.Parallel()
	a := newAttempts()
	one := Attempt{Kind: "tcp", Target: "192.0.2.1:22", Count: 1}
	for range 5 {
		a.add(one)
	}
	if got := <-a.out; got != one {
		t.Errorf("%+v", got)
	}
	if len(a.out) != 0 || a.leftOut.Load() != 4 {
		t.Errorf("%d more reports, %d left out", len(a.out), a.leftOut.Load())
	}
	a.seen[Attempt{Kind: "tcp", Target: "192.0.2.1:22"}].at = a.filled.Add(-sameAgain)
	a.add(one)
	if got := <-a.out; got.Count != 5 || a.leftOut.Load() != 0 {
		t.Errorf("%+v, %d left out", got, a.leftOut.Load())
	}
	a.close()
	a.add(one) // changes nothing
}

func TestAFloodOfAttemptsIsCountedAndNotReported(t *testing.T) {
	t.Parallel()
	a := newAttempts()
	const flood = 5000
	for i := range flood {
		a.add(Attempt{Kind: "socket", Target: "AF_UNIX", PID: i, Count: 1})
	}
	reports := uint64(len(a.out))
	if reports < attemptsASec || reports > attemptsQueued || reports+a.leftOut.Load() != flood || len(a.seen) > attemptsKnown {
		t.Errorf("%d reports, %d left out, %d known", reports, a.leftOut.Load(), len(a.seen))
	}
}

func TestTheFilterFitsEveryArchitecture(t *testing.T) {
	t.Parallel()
	for arch := range auditArch {
		if _, err := systemCalls(arch, unix.SECCOMP_RET_ERRNO); err != nil {
			t.Errorf("%s: %v", arch, err)
		}
	}
	if _, err := systemCalls("386", unix.SECCOMP_RET_ERRNO); err == nil {
		t.Error("there is one for 386")
	}
	if _, err := assemble([]op{equal(1, "nowhere", "")}); err == nil {
		t.Error("a jump to nowhere was assembled")
	}
}

func FuzzPacketAttempt(f *testing.F) {
	f.Add([]byte("\x45\x00\x00\x28\x00\x00\x40\x00\x40\x06\x00\x00\x7f\x00\x00\x01\xc0\x00\x02\x01\x30\x39\x00\x16"))
	f.Add(append(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, make([]byte, 32)...), 0, 1, 0, 53))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := packetAttempt(b); ok && (a.Kind == "" || a.Target == "" || len(a.Target) > 80 || a.Count != 1) {
			t.Errorf("%+v", a)
		}
	})
}
