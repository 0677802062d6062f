package door

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/redact"
	"github.com/vouchd/vouchd/secret"
)

func TestFilterIsMadeOnceForAllWhoAskMeanwhile(t *testing.T) {
	t.Parallel()
	var f filters
	var got [16]*redact.Secrets
	var all sync.WaitGroup
	for i := range got {
		all.Go(func() { got[i], _ = f.get([]secret.Bytes{secret.Of([]byte("a secret of an agent"))}) })
	}
	all.Wait()
	for i, s := range got {
		if s == nil || s != got[0] {
			t.Errorf("%d has another than the first", i)
		}
	}
}

func TestFiltersThatAreKeptAreBounded(t *testing.T) {
	t.Parallel()
	var f filters
	r := rand.New(rand.NewPCG(1, 2))
	emptied := false
	for i := range maxFilters {
		value := make([]byte, 4<<10)
		for j := range value {
			value[j] = byte('!' + r.IntN(90))
		}
		s, err := f.get([]secret.Bytes{secret.Of(value)})
		if err != nil {
			t.Fatal(err)
		}
		if text, n := s.String(fmt.Sprintf("<%s>", value)); n != 1 || text != "<[redacted]>" {
			t.Fatalf("the %dth is not taken out", i)
		}
		size := 0
		for _, k := range f.of {
			size += k.size
		}
		if size != f.size || size > maxFiltersSize {
			t.Fatalf("%d bytes are kept, %d are counted, of %d", size, f.size, maxFiltersSize)
		}
		if emptied = len(f.of) == 0; emptied {
			break
		}
	}
	if !emptied {
		t.Errorf("%d filters are kept", len(f.of))
	}
}

func TestSecretsThatCannotBeFoundHaveNoFilter(t *testing.T) {
	t.Parallel()
	var f filters
	for range 2 {
		if _, err := f.get([]secret.Bytes{secret.Of(bytes.Repeat([]byte("x"), redact.MinLen-1))}); err == nil {
			t.Error("a secret that cannot be told from text has a filter")
		}
	}
}
