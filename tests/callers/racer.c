/* Lets a process number pass from one process to another while somebody looks: for each line on
   standard input, a child connects to the socket and ends, and a program gets the child's number by
   clone3(set_tid). The socket itself stays open here, so the connection outlives who made it.

   racer SOCKET UID PROGRAM: the child connects as UID. Each line is one round; its first letter says
   whether the child ends at once (g) or only after it has read a byte from the socket (w). A line is
   printed once PROGRAM runs under the number, and the next line on standard input ends the round. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what) {
    printf("failed %s: %s\n", what, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static pid_t with_number(pid_t number) {
    struct clone_args arguments = {0};
    arguments.exit_signal = SIGCHLD;
    arguments.set_tid = (uintptr_t)&number;
    arguments.set_tid_size = 1;
    return syscall(SYS_clone3, &arguments, sizeof arguments);
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    uid_t uid = strtoul(arguments[2], NULL, 10);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            if (uid && (setresgid(uid, uid, uid) || setresuid(uid, uid, uid))) _exit(1);
            if (connect(connection, (struct sockaddr *)&address, sizeof address)) _exit(1);
            if (line[0] == 'w' && read(connection, line, 1) != 1) _exit(1);
            _exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0) fail("the connecting child");
        int pipe_ends[2];
        if (pipe2(pipe_ends, O_CLOEXEC)) fail("pipe");
        pid_t victim = -1;
        for (int tries = 0; victim < 0 && tries < 100; tries++) {
            victim = with_number(child);
            if (victim < 0 && errno != EEXIST) fail("clone3(set_tid)");
            if (victim < 0) usleep(100);
        }
        if (victim == 0) {
            execl(arguments[3], arguments[3], "60", (char *)NULL);
            _exit(127);
        }
        close(pipe_ends[1]);
        /* The other end closes when the program runs. */
        if (victim > 0 && read(pipe_ends[0], line, 1) != 0) fail("exec");
        close(pipe_ends[0]);
        printf("%d\n", (int)victim);
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin)) line[0] = 0;
        if (victim > 0) {
            kill(victim, SIGKILL);
            waitpid(victim, &status, 0);
        }
        close(connection);
    }
    return 0;
}
