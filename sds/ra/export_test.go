package ra

// For the tests of the queue, which need to say how long work took.
type Queue = queue

// NewQueue is newQueue.
var NewQueue = newQueue

// Enter is enter.
var Enter = (*queue).enter

// Leave is leave.
var Leave = (*queue).leave
