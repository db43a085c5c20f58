package house_test

// exception is a limit of its own, and why.
type exception struct {
	limit int
	why   string
}

var longFiles = map[string]exception{}

var longFunctions = map[string]exception{}

var manyNames = map[string]exception{
	"attest":     {45, "it is the vocabulary of all others, and each word stands for one thing"},
	"ca/journal": {30, "each kind of event is a type of its own"},
}
