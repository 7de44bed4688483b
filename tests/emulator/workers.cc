#include "emulator/workers.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace
{

class workers
{
  public:
    ~workers()
    {
        {
            std::lock_guard<std::mutex> lock(mutex);
            ending = true;
        }
        begin.notify_all();
        for (std::thread &thread : threads)
            thread.join();
    }

    void run_all(void (*run)(void *), void *argument, uint64_t blocks)
    {
        uint64_t processors = std::max(1u, std::thread::hardware_concurrency());
        uint64_t helpers = std::min(processors, blocks) - 1;
        {
            std::lock_guard<std::mutex> lock(mutex);
            while (threads.size() < helpers)
                threads.emplace_back(&workers::serve, this);
            job = run, job_argument = argument;
            wanted = helpers, busy = 0;
        }
        for (uint64_t i = 0; i < helpers; i++)
            begin.notify_one();
        run(argument);
        std::unique_lock<std::mutex> lock(mutex);
        wanted = 0; /* who has not begun by now need not */
        end.wait(lock, [this] { return busy == 0; });
    }

  private:
    void serve()
    {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            begin.wait(lock, [this] { return ending || wanted > 0; });
            if (ending)
                return;
            wanted--, busy++;
            void (*run)(void *) = job;
            void *argument = job_argument;
            lock.unlock();
            run(argument);
            lock.lock();
            if (--busy == 0)
                end.notify_all();
        }
    }

    std::mutex mutex;
    std::condition_variable begin, end;
    std::vector<std::thread> threads;
    void (*job)(void *) = nullptr;
    void *job_argument = nullptr;
    uint64_t wanted = 0, busy = 0;
    bool ending = false;
};

} /* namespace */

void nb_workers_run(void (*run)(void *argument), void *argument, uint64_t blocks)
{
    static workers all;
    if (blocks < 2)
        run(argument);
    else
        all.run_all(run, argument, blocks);
}
